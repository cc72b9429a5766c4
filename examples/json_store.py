"""A store of one's own: agents in one JSON file. The page docs/writing-a-store.md explains it.

Each batch reads the whole file and writes it anew, under a lock that all processes share: right for some hundred
agents. Runs on Unix.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from agentic import AgentInfo, AgentRegistry, AgentStatus, BackendRejectedError, CorruptRecordError, RegistryError
from agentic.abc import Backend, Cursor, Step
from agentic.agent import AgentChanges
from agentic.clock import Clock, system_clock
from agentic.urls import StoreURL
from agentic.validation import check_size

PAGE_SIZE = 500

T = TypeVar("T")
Item = TypeVar("Item")


class JSONRegistry(AgentRegistry):
    """A registry in a JSON file; an entry point makes `open_registry("json:///fleet.json")` find it."""

    def __init__(
        self,
        path: str,
        *,
        ttl: float | None = None,
        timeout: float = 5.0,
        stale_after: float = 30.0,
        wait: float = 0.0,
        clock: Clock = system_clock,
    ) -> None:
        super().__init__(JSONBackend(path, ttl=ttl, timeout=timeout, clock=clock), stale_after=stale_after, wait=wait)

    @classmethod
    def options_in(cls, url: StoreURL) -> dict[str, Any]:
        """Return the file that a URL names."""
        return {"path": url.file()}


class Lease(msgspec.Struct):
    """What is stored of an agent."""

    agent: AgentInfo
    renewed_at: datetime


class Table(dict[str, msgspec.Raw]):
    """The records of the file by id. Each is decoded when it is needed, so that a corrupt one harms no other."""

    def __init__(self, records: dict[str, msgspec.Raw], now: datetime, ttl: float | None) -> None:
        super().__init__(records)
        self.now = now
        self._ttl = None if ttl is None else timedelta(seconds=ttl)

    def read(self, agent_id: str) -> Lease:
        """Return what is stored of an agent; times in the store's future are read as now."""
        try:
            lease = msgspec.json.decode(self[agent_id], type=Lease)
        except ValueError as error:
            raise CorruptRecordError(f"the record of agent {agent_id!r} is corrupt: {error}", agent_id) from error
        return Lease(lease.agent.stamped(self.now), min(lease.renewed_at, self.now))

    def is_gone(self, lease: Lease) -> bool:
        """Return whether an agent's `ttl` is over."""
        return self._ttl is not None and self.now - lease.renewed_at > self._ttl

    def find(self, agent_id: str) -> Lease | None:
        """Return what is stored of an agent, None where it is not there or gone."""
        lease = self.read(agent_id) if agent_id in self else None
        return None if lease is None or self.is_gone(lease) else lease

    def write(self, agent: AgentInfo, renewed_at: datetime) -> AgentInfo:
        """Store an agent and return it."""
        self[agent.id] = msgspec.Raw(msgspec.json.encode(Lease(agent, renewed_at)))
        return agent


class JSONBackend(Backend):
    """Agents in a JSON file. Nothing is awaited while the file is locked: a cancelled call has happened or has not."""

    def __init__(
        self, path: str, *, ttl: float | None = None, timeout: float = 5.0, clock: Clock = system_clock
    ) -> None:
        super().__init__(ttl=ttl, timeout=timeout)
        self.path = Path(path)
        self.clock = clock

    @property
    def store(self) -> str:
        return f"json:///{self.path}"

    async def open(self) -> None:
        await self._locked(lambda table: None)

    async def close(self) -> None:
        pass  # Each call opens the file and closes it.

    # --- agents by id ---

    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[AgentInfo]:
        return await self._locked(lambda table: [table.write(each.stamped(table.now), table.now) for each in agents])

    async def touch(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        def touch_one(table: Table, agent_id: str) -> bool:
            if (lease := table.find(agent_id)) is None:
                return False
            status = AgentStatus.AVAILABLE if lease.agent.status is AgentStatus.OFFLINE else lease.agent.status
            table.write(replace(lease.agent, last_heartbeat=table.now, status=status), table.now)
            return True

        return await self._each(ids, touch_one)

    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        def fetch_one(table: Table, agent_id: str) -> AgentInfo | None:
            lease = table.find(agent_id)
            return None if lease is None else lease.agent

        return await self._each(ids, fetch_one)

    async def patch(self, changes: Sequence[tuple[str, AgentChanges]]) -> Sequence[AgentInfo | RegistryError | None]:
        def patch_one(table: Table, change: tuple[str, AgentChanges]) -> AgentInfo | None:
            agent_id, fields = change
            if (lease := table.find(agent_id)) is None:
                return None
            changed = replace(lease.agent, **fields)
            check_size(changed)
            return table.write(changed, lease.renewed_at)

        return await self._each(changes, patch_one)

    async def delete(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        def delete_one(table: Table, agent_id: str) -> bool:
            try:
                is_there = table.find(agent_id) is not None
            except CorruptRecordError:
                is_there = True
            if is_there:  # One that is gone stays for a sweep to report.
                del table[agent_id]
            return is_there

        return await self._each(ids, delete_one)

    async def times(self) -> Sequence[datetime]:
        return [self.clock()]

    # --- the whole fleet ---

    async def page(self, after: str, limit: int, walk: str) -> tuple[Sequence[AgentInfo], str | None]:
        def work(table: Table) -> tuple[Sequence[AgentInfo], str | None]:
            ids = sorted(agent_id for agent_id in table if agent_id > after)
            return self._present(table, ids[:limit]), ids[limit - 1] if len(ids) > limit else None

        return await self._locked(work)

    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        return await self.page(cursor or "", PAGE_SIZE, "")

    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        def is_marked(table: Table, lease: Lease) -> bool:
            agent, is_gone = lease.agent, table.is_gone(lease)
            is_silent = agent.last_heartbeat is not None and table.now - agent.last_heartbeat > ttl
            is_new = agent.status is not AgentStatus.OFFLINE and (is_gone or is_silent)
            if is_gone:
                del table[agent.id]
            else:  # Written in any case: a time in the future becomes now, so that the agent ages from now on.
                table.write(replace(agent, status=AgentStatus.OFFLINE) if is_new else agent, lease.renewed_at)
            return is_new

        def work(table: Table) -> Sequence[str]:
            return [lease.agent.id for lease in self._sound(table, table) if is_marked(table, lease)]

        return await self._locked(work), None

    async def clear(self, cursor: Cursor) -> Step[int]:
        def work(table: Table) -> int:
            agents = self._present(table, table)
            table.clear()
            return len(agents)

        return await self._locked(work), None

    def _present(self, table: Table, ids: Iterable[str]) -> list[AgentInfo]:
        return [lease.agent for lease in self._sound(table, ids) if not table.is_gone(lease)]

    def _sound(self, table: Table, ids: Iterable[str]) -> list[Lease]:
        """Return what is stored of agents; report corrupt records and skip them."""
        found = []
        for agent_id in ids:
            try:
                found.append(table.read(agent_id))
            except CorruptRecordError as error:
                self.on_corrupt(error)
        return found

    # --- the file ---

    async def _each(self, items: Sequence[Item], work: Callable[[Table, Item], T]) -> list[T | RegistryError]:
        """Do some work for each item of a batch; an error is the outcome of its own item."""

        def outcome(table: Table, item: Item) -> T | RegistryError:
            try:
                return work(table, item)
            except RegistryError as error:
                return error

        return await self._locked(lambda table: [outcome(table, item) for item in items])

    async def _locked(self, work: Callable[[Table], T]) -> T:
        """Do some work on the records in the file while it is locked. The registry cancels what waits too long."""
        while True:
            try:
                with self.path.with_name(f"{self.path.name}.lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return self._change(work)
            except BlockingIOError:
                await asyncio.sleep(0.005)
            except OSError as error:
                raise BackendRejectedError(f"{self.store}: {error.strerror}") from error

    def _change(self, work: Callable[[Table], T]) -> T:
        """Read the file, do some work on its records, and replace the file if they have changed."""
        try:
            content = self.path.read_bytes() if self.path.exists() else b"{}"
            records = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        except ValueError as error:
            raise BackendRejectedError(f"{self.store}: not a JSON object: {error}") from error
        table = Table(records, self.clock(), self.ttl)
        outcome = work(table)
        if table != records:
            new = self.path.with_name(f"{self.path.name}.new")
            new.write_bytes(msgspec.json.encode(table))
            new.replace(self.path)  # In one step: a reader or a crash finds either file whole.
        return outcome

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
from agentic.abc import Backend, Cursor, DrainOrder, Registered, Step
from agentic.agent import AgentChanges, Beat, Drain
from agentic.clock import NEVER, Clock, after, system_clock
from agentic.incarnations import admitted, believed, next_incarnation, random_distance
from agentic.urls import StoreURL
from agentic.validation import check_size

PAGE_SIZE = 500
HEAD = ""
"""The name, which no agent can have, of what the file holds beside agents."""

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
    before_offline: AgentStatus = AgentStatus.AVAILABLE
    incarnation: Any = 0
    """Beside the agent, so that a wrong one does not make it corrupt."""


class Numbered(msgspec.Struct):
    """The part of a lease that tells the starts of an agent apart."""

    incarnation: Any = 0


class Head(msgspec.Struct):
    """The highest incarnation given out so far, and the drains by id."""

    counter: int = 0
    drains: dict[str, Drain] = {}


class Table(dict[str, msgspec.Raw]):
    """The records of the file by id. Each is decoded when it is needed, so that a corrupt one harms no other."""

    def __init__(self, records: dict[str, msgspec.Raw], head: Head, now: datetime, ttl: float | None) -> None:
        super().__init__(records)
        self.head = head
        self.now = now
        self._ttl = None if ttl is None else timedelta(seconds=ttl)

    def read(self, agent_id: str) -> Lease:
        """Return what is stored of an agent; times in the store's future are read as now."""
        try:
            lease = msgspec.json.decode(self[agent_id], type=Lease)
        except ValueError as error:
            raise CorruptRecordError(f"the record of agent {agent_id!r} is corrupt: {error}", agent_id) from error
        number = believed(lease.incarnation, self.now)
        agent = replace(lease.agent.stamped(self.now), incarnation=number, draining=self.drain_of(agent_id))
        return Lease(agent, min(lease.renewed_at, self.now), lease.before_offline)

    def drain_of(self, agent_id: str) -> Drain | None:
        """Return the drain of an agent; None if there is none, or it has ended."""
        drain = self.head.drains.get(agent_id)
        return None if drain is None or (drain.ends_at and drain.ends_at <= self.now) else drain

    def is_gone(self, lease: Lease) -> bool:
        """Return whether an agent's `ttl` is over."""
        return self._ttl is not None and self.now - lease.renewed_at > self._ttl

    def find(self, agent_id: str) -> Lease | None:
        """Return what is stored of an agent, None where it is not there or gone."""
        lease = self.read(agent_id) if agent_id in self else None
        return None if lease is None or self.is_gone(lease) else lease

    def find_for(self, agent_id: str, incarnation: int) -> Lease | None:
        """Return what is stored of an agent, None where a call of this start of it must not change that."""
        lease = self.find(agent_id)
        return lease if lease and self.admits(agent_id, incarnation) else None

    def admits(self, agent_id: str, incarnation: int) -> bool:
        """Return whether a call of this start may change what is stored; raise the error where it is told so."""
        verdict = admitted(agent_id, incarnation, self.incarnation_of(agent_id), self.now)
        if isinstance(verdict, RegistryError):
            raise verdict
        return verdict

    def incarnation_of(self, agent_id: str) -> int:
        """Return the incarnation that is stored, even if the agent itself cannot be read; 0 if there is none."""
        try:
            return believed(msgspec.json.decode(self[agent_id], type=Numbered).incarnation, self.now)
        except (KeyError, ValueError):
            return 0

    def write(
        self, agent: AgentInfo, renewed_at: datetime, before_offline: AgentStatus = AgentStatus.AVAILABLE
    ) -> AgentInfo:
        """Store an agent and return it."""
        stored = replace(agent, incarnation=0, draining=None)
        self[agent.id] = msgspec.Raw(msgspec.json.encode(Lease(stored, renewed_at, before_offline, agent.incarnation)))
        return replace(agent, draining=self.drain_of(agent.id))


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

    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[Registered | RegistryError]:
        def insert_one(table: Table, agent: AgentInfo) -> Registered:
            try:
                lease = table.find(agent.id)
                stored = 0 if lease is None else lease.agent.incarnation
            except CorruptRecordError:
                lease, stored = None, table.incarnation_of(agent.id)
            verdict = admitted(agent.id, agent.incarnation, stored, table.now)
            if isinstance(verdict, RegistryError):
                raise verdict
            new = agent.incarnation or next_incarnation(table.head.counter, stored, table.now, random_distance())
            table.head.counter = max(table.head.counter, new)
            written = table.write(replace(agent.stamped(table.now), incarnation=new), table.now)
            if lease is None or agent.incarnation:
                return Registered(written)
            return Registered(written, table.now - (lease.agent.last_heartbeat or NEVER), stored)

        return await self._each(agents, insert_one)

    async def touch(self, beats: Sequence[tuple[str, int]]) -> Sequence[Beat | RegistryError | None]:
        def touch_one(table: Table, beat: tuple[str, int]) -> Beat | None:
            agent_id, incarnation = beat
            if (lease := table.find_for(agent_id, incarnation)) is None:
                return None
            was_offline = lease.agent.status is AgentStatus.OFFLINE
            status = lease.before_offline if was_offline else lease.agent.status
            table.write(replace(lease.agent, last_heartbeat=table.now, status=status), table.now)
            is_rewritten = incarnation > 0 and not lease.agent.incarnation
            return Beat(was_offline, lease.agent.draining, is_rewritten)

        return await self._each(beats, touch_one)

    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        def fetch_one(table: Table, agent_id: str) -> AgentInfo | None:
            lease = table.find(agent_id)
            return None if lease is None else lease.agent

        return await self._each(ids, fetch_one)

    async def patch(
        self, changes: Sequence[tuple[str, AgentChanges, int]]
    ) -> Sequence[AgentInfo | RegistryError | None]:
        def patch_one(table: Table, change: tuple[str, AgentChanges, int]) -> AgentInfo | None:
            agent_id, fields, incarnation = change
            if (lease := table.find_for(agent_id, incarnation)) is None:
                return None
            changed = replace(lease.agent, incarnation=incarnation or lease.agent.incarnation, **fields)
            check_size(changed)
            before_offline = AgentStatus.AVAILABLE if "status" in fields else lease.before_offline
            return table.write(changed, lease.renewed_at, before_offline)

        return await self._each(changes, patch_one)

    async def delete(self, starts: Sequence[tuple[str, int]]) -> Sequence[bool | RegistryError]:
        def delete_one(table: Table, start: tuple[str, int]) -> bool:
            try:
                is_there = table.find_for(*start) is not None
            except CorruptRecordError:
                is_there = table.admits(*start)
            if is_there:  # One that is gone stays for a sweep to report.
                del table[start[0]]
            return is_there

        return await self._each(starts, delete_one)

    async def set_drains(
        self, orders: Sequence[tuple[str, DrainOrder | None]]
    ) -> Sequence[Drain | bool | RegistryError]:
        def set_one(table: Table, order: tuple[str, DrainOrder | None]) -> Drain | bool:
            agent_id, wanted = order
            was_there = table.drain_of(agent_id) is not None
            table.head.drains.pop(agent_id, None)
            if wanted is None:
                return was_there
            drain = Drain(wanted.reason, wanted.by, table.now, after(table.now, wanted.seconds))
            table.head.drains[agent_id] = drain
            return drain

        return await self._each(orders, set_one)

    async def drains(self) -> dict[str, Drain]:
        def work(table: Table) -> dict[str, Drain]:
            found = {agent_id: table.drain_of(agent_id) for agent_id in table.head.drains}
            return {agent_id: drain for agent_id, drain in found.items() if drain is not None}

        return await self._locked(work)

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
            elif is_new:
                table.write(replace(agent, status=AgentStatus.OFFLINE), lease.renewed_at, agent.status)
            else:  # Written all the same: a time in the future becomes now, so that the agent ages from now on.
                table.write(agent, lease.renewed_at, lease.before_offline)
            return is_new

        def work(table: Table) -> Sequence[str]:
            return [lease.agent.id for lease in self._sound(table, table) if is_marked(table, lease)]

        return await self._locked(work), None

    async def clear(self, cursor: Cursor) -> Step[int]:
        def work(table: Table) -> int:
            agents = self._present(table, table)
            table.clear()
            table.head.drains.clear()
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
            head = msgspec.json.decode(records.pop(HEAD, b"{}"), type=Head)
        except ValueError as error:
            raise BackendRejectedError(f"{self.store}: not a JSON object: {error}") from error
        before = msgspec.json.encode(head)
        table = Table(records, head, self.clock(), self.ttl)
        outcome = work(table)
        if table != records or msgspec.json.encode(head) != before:
            new = self.path.with_name(f"{self.path.name}.new")
            new.write_bytes(msgspec.json.encode({HEAD: head, **table}))
            new.replace(self.path)  # In one step: a reader or a crash finds either file whole.
        return outcome

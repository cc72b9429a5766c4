"""Agents in this process's memory, for tests and for fleets within one process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import nsmallest
from typing import Any, Final, Self

from msgspec.structs import replace

from agentic.abc import Backend, Cursor, DrainOrder, Registered, Step
from agentic.agent import USUAL_BEAT, AgentChanges, AgentInfo, AgentStatus, Beat, Drain
from agentic.clock import NEVER, Clock, after, is_stale, read, system_clock
from agentic.errors import InvalidAgentError, RegistryError
from agentic.incarnations import admitted, believed, next_incarnation, random_distance
from agentic.options import function
from agentic.registry import AgentRegistry
from agentic.urls import StoreURL, malformed
from agentic.validation import check_size

PAGE_SIZE: Final = 1000


@dataclass(slots=True)
class _Entry:
    agent: AgentInfo
    renewed_at: datetime
    before_offline: AgentStatus = AgentStatus.AVAILABLE
    """The status that a sweep replaced by `OFFLINE`."""


class MemoryRegistry(AgentRegistry):
    """A registry in this process's memory. Its agents exist as long as the object does, open or closed.

    `clock` is the store's clock. An agent past its `ttl` is gone for every call; `reap` frees its memory, and reports
    it if it was never marked offline.
    """

    is_shared = False
    backend: MemoryBackend

    def __init__(
        self,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | timedelta = 5.0,
        stale_after: float | timedelta = 30.0,
        wait: float | timedelta = 0.0,
        clock: Clock = system_clock,
    ) -> None:
        """Make an empty registry.

        Args:
            ttl: Seconds after its last registration or heartbeat at which an agent is **gone**; None keeps it.
            timeout: Seconds a call may take; calls on this store never wait.
            stale_after: Seconds of silence after which a reaper marks an agent **offline**, by default.
            wait: Seconds for which opening is retried while the store is unavailable.
            clock: Returns the current instant as an aware `datetime`.

        Raises:
            ConfigurationError: An option is wrong.
        """
        super().__init__(MemoryBackend(ttl=ttl, timeout=timeout, clock=clock), stale_after=stale_after, wait=wait)
        self.clock = self.backend.clock

    @classmethod
    def options_in(cls, url: StoreURL) -> dict[str, Any]:
        """Return an empty dict."""
        if url.file() is not None:
            malformed("memory:// takes no path")
        return {}

    @classmethod
    def scratch(cls, **options: Any) -> AbstractContextManager[Self]:
        """Make a registry; each has its own agents."""
        return nullcontext(cls(**options))


class MemoryBackend(Backend):
    """Agents in a dict. An agent past its `ttl` stays in it until the next sweep."""

    def __init__(
        self, *, ttl: float | timedelta | None = None, timeout: float | timedelta = 5.0, clock: Clock = system_clock
    ) -> None:
        """Make an empty store.

        Args:
            ttl: As of `Backend`.
            timeout: As of `Backend`.
            clock: Returns the current instant as an aware `datetime`.

        Raises:
            ConfigurationError: An option is wrong.
        """
        super().__init__(ttl=ttl, timeout=timeout)
        self.is_immediate = type(self) is MemoryBackend  # The methods of a subclass may wait.
        self.clock = function(clock, "clock")
        self._lifetime = None if self.ttl is None else timedelta(seconds=self.ttl)
        self._entries: dict[str, _Entry] = {}
        self._counter = 0
        self._drains: dict[str, Drain] = {}

    @property
    def store(self) -> str:
        """`memory://`."""
        return "memory://"

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[Registered | RegistryError]:
        now = self._now()
        return [self._insert_one(agent, now) for agent in agents]

    def _insert_one(self, agent: AgentInfo, now: datetime) -> Registered | RegistryError:
        entry = self._entry(agent.id, now)
        stored = 0 if entry is None else believed(entry.agent.incarnation, now)
        verdict = admitted(agent.id, agent.incarnation, stored, now)
        if isinstance(verdict, RegistryError):
            return verdict
        incarnation = agent.incarnation or next_incarnation(self._counter, stored, now, random_distance())
        self._counter = max(self._counter, incarnation)
        stamped = replace(agent.stamped(now), incarnation=incarnation)
        self._entries[agent.id] = _Entry(stamped, renewed_at=now)
        stored_agent = self._seen(stamped, now)
        if entry is None or agent.incarnation:
            return Registered(stored_agent)
        return Registered(stored_agent, now - (entry.agent.last_heartbeat or NEVER), stored)

    async def touch(self, beats: Sequence[tuple[str, int]]) -> Sequence[Beat | RegistryError | None]:
        now = self._now()
        return [self._touch_one(agent_id, incarnation, now) for agent_id, incarnation in beats]

    def _touch_one(self, agent_id: str, incarnation: int, now: datetime) -> Beat | RegistryError | None:
        entry = self._entry(agent_id, now)
        if entry is None:
            return None
        agent = entry.agent
        is_rewritten = False
        if incarnation:
            stored = believed(agent.incarnation, now)
            verdict = admitted(agent_id, incarnation, stored, now)
            if verdict is not True:
                return verdict or None
            is_rewritten = not stored
        entry.renewed_at = now
        was_offline = agent.status is AgentStatus.OFFLINE
        status = entry.before_offline if was_offline else agent.status
        entry.agent = replace(agent, last_heartbeat=now, status=status)
        draining = self._drain(agent_id, now) if self._drains else None
        if was_offline or is_rewritten or draining:
            return Beat(was_offline=was_offline, draining=draining, rewritten=is_rewritten)
        return USUAL_BEAT

    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | None]:
        now = self._now()
        entries = [self._entry(agent_id, now) for agent_id in ids]
        return [None if entry is None else self._seen(entry.agent, now) for entry in entries]

    async def patch(
        self, changes: Sequence[tuple[str, AgentChanges, int]]
    ) -> Sequence[AgentInfo | RegistryError | None]:
        now = self._now()
        return [self._patch_one(agent_id, fields, incarnation, now) for agent_id, fields, incarnation in changes]

    def _patch_one(
        self, agent_id: str, fields: AgentChanges, incarnation: int, now: datetime
    ) -> AgentInfo | RegistryError | None:
        entry = self._entry(agent_id, now)
        if entry is None:
            return None
        verdict = admitted(agent_id, incarnation, believed(entry.agent.incarnation, now), now)
        if verdict is not True:
            return verdict or None
        changed = replace(entry.agent, incarnation=incarnation or entry.agent.incarnation, **fields)
        try:
            check_size(changed)
        except InvalidAgentError as error:
            return error
        entry.agent = changed
        if "status" in fields:
            entry.before_offline = AgentStatus.AVAILABLE
        return self._seen(changed, now)

    async def delete(self, starts: Sequence[tuple[str, int]]) -> Sequence[bool | RegistryError]:
        now = self._now()
        return [self._delete_one(agent_id, incarnation, now) for agent_id, incarnation in starts]

    def _delete_one(self, agent_id: str, incarnation: int, now: datetime) -> bool | RegistryError:
        entry = self._entry(agent_id, now)
        if entry is None:
            return False  # An agent past its `ttl` stays, so that `reap` can report it.
        verdict = admitted(agent_id, incarnation, believed(entry.agent.incarnation, now), now)
        if verdict is True:
            del self._entries[agent_id]
        return verdict

    async def set_drains(self, orders: Sequence[tuple[str, DrainOrder | None]]) -> Sequence[Drain | bool]:
        now = self._now()
        outcomes: list[Drain | bool] = []
        for agent_id, order in orders:
            if order is None:
                outcomes.append(self._drain(agent_id, now) is not None)
                self._drains.pop(agent_id, None)
            else:
                drain = Drain(order.reason, order.by, now, after(now, order.seconds))
                self._drains[agent_id] = drain
                outcomes.append(drain)
        return outcomes

    async def drains(self) -> dict[str, Drain]:
        now = self._now()
        found = {agent_id: self._drain(agent_id, now) for agent_id in [*self._drains]}
        return {agent_id: drain for agent_id, drain in found.items() if drain is not None}

    def _drain(self, agent_id: str, now: datetime) -> Drain | None:
        """Return an agent's drain; forget one that has ended."""
        drain = self._drains.get(agent_id)
        if drain is not None and drain.ends_at is not None and drain.ends_at <= now:
            del self._drains[agent_id]
            return None
        return drain

    def _seen(self, agent: AgentInfo, now: datetime) -> AgentInfo:
        """Return an agent as it is read at this time."""
        stamped = agent.stamped(now)
        drain = self._drain(agent.id, now) if self._drains else None
        return stamped if drain is None else replace(stamped, draining=drain)

    async def times(self) -> Sequence[datetime]:
        return [self._now()]

    async def page(self, after: str, limit: int, walk: str) -> tuple[Sequence[AgentInfo], str | None]:
        ids = nsmallest(limit + 1, (agent_id for agent_id in self._entries if agent_id > after))
        agents = await self.fetch(ids[:limit])
        return [agent for agent in agents if agent is not None], ids[limit - 1] if len(ids) > limit else None

    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        ids, following = self._next_ids(cursor)
        return [agent for agent in await self.fetch(ids) if agent is not None], following

    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        now = self._now()
        ids, as_of = cursor or (None, now)
        page, following = self._next_ids(ids)
        # Measure silence up to the start of the sweep, so that a blocked event loop between two pages marks nobody
        # offline. After a step back of the clock, measure up to now.
        as_of = min(as_of, now)
        marked = [agent_id for agent_id in page if self._sweep_one(agent_id, as_of, now, ttl)]
        return marked, following and (following, as_of)

    def _sweep_one(self, agent_id: str, as_of: datetime, now: datetime, ttl: timedelta) -> bool:
        """Mark an agent offline if it is silent, delete it if its `ttl` is over; return whether to report it."""
        entry = self._entries.get(agent_id)
        if entry is None:
            return False
        # After a step back of the clock, a time in the future becomes now, so that the agent ages from now on.
        entry.agent = agent = entry.agent.stamped(now)
        entry.renewed_at = min(entry.renewed_at, now)
        is_over = self._is_over(entry, as_of)
        if is_over:
            del self._entries[agent_id]
        if agent.status is AgentStatus.OFFLINE:
            return False
        is_silent = is_over or is_stale(agent.last_heartbeat or NEVER, as_of, ttl)
        if is_silent:
            entry.before_offline = agent.status
            entry.agent = replace(agent, status=AgentStatus.OFFLINE)
        return is_silent

    async def clear(self, cursor: Cursor) -> Step[int]:
        ids, following = self._next_ids(cursor)
        now = self._now()
        if following is None:
            self._drains.clear()
        entries = [self._entries.pop(agent_id, None) for agent_id in ids]
        return sum(entry is not None and not self._is_over(entry, now) for entry in entries), following

    def _now(self) -> datetime:
        return read(self.clock)

    def _entry(self, agent_id: str, now: datetime) -> _Entry | None:
        """Return an agent's entry, or None if there is none or its `ttl` is over."""
        entry = self._entries.get(agent_id)
        return None if entry is None or self._is_over(entry, now) else entry

    def _is_over(self, entry: _Entry, now: datetime) -> bool:
        return self._lifetime is not None and is_stale(entry.renewed_at, now, self._lifetime)

    def _next_ids(self, cursor: tuple[list[str], int] | None) -> tuple[list[str], tuple[list[str], int] | None]:
        """Return a page of the ids that existed when the walk began, and the cursor of the next page."""
        ids, first = cursor or (list(self._entries), 0)
        end = first + PAGE_SIZE
        return ids[first:end], (ids, end) if end < len(ids) else None

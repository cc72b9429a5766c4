"""Keep one agent present: register it on entry, send its heartbeats in the background, deregister it on exit."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Final, Protocol, Unpack

import anyio
import msgspec

from agentic.agent import CHANGEABLE, AgentChanges, AgentInfo, Beat, Drain
from agentic.backoff import Backoff
from agentic.clock import positive_seconds, system_clock
from agentic.concurrency import finish
from agentic.errors import (
    AgentNotFoundError,
    AgentReplacedError,
    BackendError,
    ConfigurationError,
    CorruptRecordError,
    InvalidAgentError,
    RegistryClosedError,
    RegistryError,
)
from agentic.logs import FieldLogger
from agentic.service import Service
from agentic.text import printable
from agentic.validation import valid_agent, valid_changes

logger = logging.getLogger("agentic.session")

LONGEST_DEFAULT_INTERVAL: Final = 10.0
BEATS_PER_STALE_AFTER: Final = 3
"""Heartbeats that fit into `stale_after`: two in a row may be lost before a reaper marks the agent offline."""


SUSPICIOUS_BEATS: Final = 5
"""Heartbeats in a row that find a rewritten record, after which this is logged as an error."""


_LOST: Final = (AgentNotFoundError, CorruptRecordError, InvalidAgentError)
"""Errors after which a session registers its agent again; see `_raise_unless_lost`."""


class DeregistrationBudget:
    """Limits how long all sessions of one registry together wait for deregistrations that get no answer.

    Each deregistration also has the registry's `timeout`. Once the budget is spent, further deregistrations are sent
    and finish in the background; leaving does not wait for them.
    """

    _MINIMUM: Final = 0.01
    """Seconds to wait even when the budget is spent, so that the call can be sent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = self._left = seconds
        self._calls: set[asyncio.Task[bool]] = set()

    def reset(self) -> None:
        """Restore the whole budget, because the store has answered."""
        self._left = self._seconds

    async def wait(self, call: Coroutine[Any, Any, bool]) -> None:
        """Wait for a call while the budget lasts. The call returns whether the store answered."""
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        started_at = monotonic()
        await asyncio.wait([task], timeout=max(self._left, self._MINIMUM))
        if task.done() and task.result():
            self.reset()
        else:
            self._left -= monotonic() - started_at


class Registry(Protocol):
    """The part of `AgentRegistry` that a session uses."""

    ttl: float | None
    timeout: float
    stale_after: float
    deregistration_budget: DeregistrationBudget
    direct_starts: dict[str, int]

    @property
    def store(self) -> str: ...  # noqa: D102

    async def register(self, agent: AgentInfo, *, incarnation: int) -> AgentInfo: ...  # noqa: D102
    async def heartbeat(self, agent_id: str, *, incarnation: int) -> Beat: ...  # noqa: D102
    async def update(  # noqa: D102
        self, agent_id: str, *, incarnation: int, **changes: Unpack[AgentChanges]
    ) -> AgentInfo: ...
    async def deregister(self, agent_id: str, *, incarnation: int) -> None: ...  # noqa: D102


class AgentSession(Service):
    """Keeps one agent registered and alive, while the body of its `async with` runs or from `open` to `aclose`.

    - Entering registers the agent. If the store fails, entering raises and may be tried again.
    - A heartbeat is sent every `interval`, or up to a fifth earlier at random, so that a fleet's heartbeats spread out.
    - Each session that is opened is a new start of the agent, with an incarnation of its own, which it names in every
      call. If a later start of the agent registers, `replaced` is set, which is logged as an error. The session then
      sends no more heartbeats, its `update` raises `AgentReplacedError`, and leaving it does not remove the agent. End
      the program: two supervised programs with one id would replace each other for ever.
    - If the agent has gone from the store (expired, flushed, restarted empty) or its record is corrupt, the session
      registers it again, with the same incarnation and every change made by `update`.
    - If a program that does not know all fields has rewritten the record, the session writes its fields again, except
      `status`. If that happens at five heartbeats in a row, it is logged as an error.
    - A store outage does not end the session. It is logged once, `healthy` is False until a heartbeat succeeds, and
      heartbeats are retried after half a second, then after pauses that double up to `interval`.
    - Leaving deregisters the agent within the registry's `timeout`, even when cancelled. A failure is only logged,
      because an agent without heartbeats goes offline anyway. If the store does not answer, all sessions of one
      registry together wait for one `timeout`; the remaining deregistrations finish in the background.
    - An exception of the body propagates unchanged. If the heartbeat task hits a bug or is cancelled by other code,
      the error is logged, the body is cancelled if it runs in the task that entered, and leaving raises the error;
      after `open`, `aclose` raises it. If the body raises too, leaving raises an `ExceptionGroup`.

    A session may be entered in one task and left in another. It may be reopened once it is closed. Heartbeats run in a
    copy of the context in which it was opened.

    Attributes:
        interval: Seconds between heartbeats. More than a third of the registry's `stale_after` logs a warning.
        healthy: Whether the latest heartbeat or registration succeeded.
        last_beat_at: When the latest successful one was acknowledged, by this host's clock; None before the first.
        incarnation: Which start of the agent this session is; 0 before it was opened.
        replaced: Set when a later start of the agent has registered.
        draining: The operator's order under which the agent gets no new work, as of the latest heartbeat or
            registration; None if there is none.
    """

    def __init__(self, registry: Registry, agent: AgentInfo, *, interval: float | timedelta | None = None) -> None:
        self._registry = registry
        # With an old last_heartbeat, the agent would be stale as soon as it is registered.
        self._agent = valid_agent(msgspec.structs.replace(valid_agent(agent), last_heartbeat=None))
        super().__init__(
            f"the session of agent '{printable(self._agent.id)}'",
            registry.timeout,
            FieldLogger(logger, store=registry.store, agent_id=self._agent.id),
        )
        self.interval = _interval(interval, registry)
        self.healthy = False
        self.last_beat_at: datetime | None = None
        # Serializes writes of the record, so that no registration restores fields that an update has just replaced.
        self._writing = anyio.Lock()
        self._registered = False
        self.incarnation = 0
        self.replaced = asyncio.Event()
        self.draining: Drain | None = None
        self._rewritten_beats = 0
        self._successor: int | None = None

    @property
    def agent(self) -> AgentInfo:
        """The agent as the session registers it: as passed in, with the changes made by `update`."""
        return self._agent

    async def update(self, **changes: Unpack[AgentChanges]) -> AgentInfo:
        """Change fields of the agent as `AgentRegistry.update` does, and include them in later registrations.

        If the agent has gone from the store or its record is corrupt, it is registered again with the change.

        Returns:
            The agent after the change.

        Raises:
            AgentReplacedError: A later start of the agent has registered; nothing was changed.
            InvalidAgentError: A value is invalid; nothing was changed.
            RegistryClosedError: The session is not open; nothing was changed.
            BackendError: The store failed. The session drops the change, but the store may have applied it.
        """
        checked = valid_changes(changes)
        async with self._writing:
            if not self._registered:
                raise RegistryClosedError(f"{self._name} is not open")
            if self._successor is not None:
                raise AgentReplacedError(self._agent.id, self._successor)
            wanted = valid_agent(msgspec.structs.replace(self._agent, **checked))
            try:
                return await self._change(wanted, checked)
            except AgentReplacedError as error:
                self._be_replaced(error)
                raise

    async def _change(self, wanted: AgentInfo, changes: AgentChanges) -> AgentInfo:
        try:
            changed = await self._registry.update(wanted.id, incarnation=self.incarnation, **changes)
        except _LOST as error:
            _raise_unless_lost(error)
            changed = await self._register(wanted)
            self._log_registered_again(error)
        else:
            self._agent = wanted
        return changed

    async def unready(self, reason: str) -> AgentInfo:
        """Announce why the agent takes no work now, such as "loading the model". It stays registered and alive.

        This is `update(unready=reason)`, with the same guarantees.
        """
        return await self.update(unready=reason)

    async def ready(self) -> AgentInfo:
        """Announce that the agent takes work again. This is `update(unready="")`."""
        return await self.update(unready="")

    async def _begin(self) -> None:
        longest = self._registry.stale_after / BEATS_PER_STALE_AFTER
        if self.interval > longest:
            self._log.warning(
                "%s: interval=%g s is longer than a third of the registry's stale_after=%g s, so a reaper may mark the "
                "agent offline after one or two lost heartbeats: choose an interval of at most %g s",
                self._name,
                self.interval,
                self._registry.stale_after,
                longest,
            )
        self.incarnation = self._rewritten_beats = 0
        self._successor = None
        self.replaced.clear()
        try:
            await self._register(self._agent)
        except asyncio.CancelledError:
            if self._registered:
                await finish(self._end(), self._timeout)
            raise

    async def _serve(self) -> None:
        backoff = Backoff(self._log, self._name, self.interval)
        pause = jittered(self.interval)
        loop = asyncio.get_running_loop()
        while self._successor is None:
            planned = loop.time() + pause
            await asyncio.sleep(pause)
            if self._successor is not None:
                break
            started_at = loop.time()
            if started_at - planned > self.interval:
                self._log.warning(
                    "%s: the event loop or the process was blocked, so its heartbeat is %.1f s late",
                    self._name,
                    started_at - planned,
                )
            try:
                await self._heartbeat()
            except AgentReplacedError as error:
                self._be_replaced(error)
            except BackendError as error:
                self.healthy = False
                pause = backoff.failed(error)
            else:
                backoff.succeeded()
                pause = max(0.0, jittered(self.interval) - (loop.time() - started_at))
        await loop.create_future()  # Until the session is left.

    async def _end(self) -> None:
        await self._registry.deregistration_budget.wait(self._deregister())

    async def _heartbeat(self) -> None:
        try:
            beat = await self._registry.heartbeat(self._agent.id, incarnation=self.incarnation)
            self.draining = beat.draining
            if beat.rewritten:
                await self._write_again()
            else:
                self._rewritten_beats = 0
            self._acknowledged()
        except _LOST as error:
            _raise_unless_lost(error)
            # The session owns this record, so it may replace a corrupt one.
            async with self._writing:
                if self._successor is not None:
                    return
                await self._register(self._agent)
            self._log_registered_again(error)

    async def _write_again(self) -> None:
        """Write the fields of the session, except `status`, into a record that has lost some, and its incarnation."""
        async with self._writing:
            if self._successor is not None:
                return
            fields: AgentChanges = {name: getattr(self._agent, name) for name in CHANGEABLE if name != "status"}  # type: ignore[assignment]
            try:
                await self._registry.update(self._agent.id, incarnation=self.incarnation, **fields)
            except InvalidAgentError as error:
                if error.field == "incarnation":
                    raise
                await self._register(self._agent)  # What the other program has written makes the record too long.
        self._rewritten_beats += 1
        if self._rewritten_beats == SUSPICIOUS_BEATS:
            self._log.error(
                "agent %r: another program has rewritten its record before each of the last %d heartbeats: give each "
                "program an id of its own",
                self._agent.id,
                SUSPICIOUS_BEATS,
            )

    def _be_replaced(self, error: AgentReplacedError) -> None:
        """Record that a later start of the agent has registered; the session sends nothing more."""
        self.healthy = False
        if self._successor is None:
            self._successor = error.incarnation
            self.replaced.set()
            self._log.error("agent %r was replaced by a later start of it: end this program", self._agent.id)

    def _log_registered_again(self, error: RegistryError) -> None:
        if isinstance(error, CorruptRecordError):
            self._log.warning("agent %r was registered again, replacing its corrupt record: %s", self._agent.id, error)
        else:
            self._log.warning("agent %r was gone from the store and was registered again", self._agent.id)

    async def _register(self, agent: AgentInfo) -> AgentInfo:
        # Let a cancelled registration finish; otherwise it could reach the store after the deregistration.
        return await finish(self._register_now(agent), self._registry.timeout)

    async def _register_now(self, agent: AgentInfo) -> AgentInfo:
        try:
            stored = await self._registry.register(agent, incarnation=self.incarnation)
        except InvalidAgentError as error:
            if error.field != "incarnation":
                raise
            # The store's clock was set back by more than a year, so that it no longer believes this incarnation.
            stored = await self._registry.register(agent, incarnation=0)
        self._registry.direct_starts.pop(agent.id, None)  # Whoever replaces this start gets a warning.
        self._agent = agent
        self.incarnation = stored.incarnation
        self.draining = stored.draining
        self._registered = True
        self._acknowledged()
        return stored

    async def _deregister(self) -> bool:
        """Remove the agent. Return whether the store answered."""
        self.healthy = False
        async with self._writing:
            self._registered = False
            if self._successor is not None:
                return True
            try:
                await self._registry.deregister(self._agent.id, incarnation=self.incarnation)
            except AgentReplacedError as error:
                self._be_replaced(error)
            except AgentNotFoundError:
                self._log.info("agent %r was already gone from the store when its session ended", self._agent.id)
            except (BackendError, InvalidAgentError, RegistryClosedError, asyncio.CancelledError) as error:
                reason = str(error) or "cancelled by other code"
                self._log.warning("agent %r could not be deregistered and will go offline: %s", self._agent.id, reason)
                return False
        return True

    def _acknowledged(self) -> None:
        self.healthy = self._successor is None
        self.last_beat_at = system_clock()
        self._registry.deregistration_budget.reset()


def _raise_unless_lost(error: RegistryError) -> None:
    """Raise an error about invalid fields; one about the incarnation means that the store no longer believes it."""
    if isinstance(error, InvalidAgentError) and error.field != "incarnation":
        raise error


def jittered(interval: float) -> float:
    """Return the interval shortened by up to a fifth at random, so that the heartbeats of a fleet spread out."""
    return interval * random.uniform(0.8, 1.0)


def _interval(interval: float | timedelta | None, registry: Registry) -> float:
    ttl = registry.ttl
    if interval is None:
        silence = registry.stale_after if ttl is None else min(registry.stale_after, ttl)
        return min(LONGEST_DEFAULT_INTERVAL, silence / BEATS_PER_STALE_AFTER)
    seconds = positive_seconds(interval, "interval")
    if ttl is not None and seconds >= ttl:
        raise ConfigurationError(f"interval must be shorter than the registry's ttl of {ttl:g} s, got {seconds:g}")
    return seconds

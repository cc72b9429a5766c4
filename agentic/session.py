"""An agent's own presence: registered on entry, sending heartbeats in the background, deregistered on exit."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import datetime, timedelta
from typing import Final, Protocol, Unpack

import anyio
import msgspec

from agentic.agent import AgentChanges, AgentInfo, valid_agent, valid_changes
from agentic.clock import positive_seconds, system_clock
from agentic.concurrency import finish
from agentic.errors import AgentNotFoundError, BackendError, ConfigurationError, CorruptRecordError, RegistryClosedError
from agentic.logs import FieldLogger
from agentic.outage import Outage, Patience
from agentic.service import Service
from agentic.text import printable

logger = logging.getLogger("agentic.session")

LONGEST_DEFAULT_INTERVAL: Final = 10.0
BEATS_PER_STALE_AFTER: Final = 3
"""How many heartbeats fit into the silence after which an agent is marked: two may be lost without harm."""


class Registry(Protocol):
    """What a session asks of `AgentRegistry`."""

    ttl: float | None
    timeout: float
    stale_after: float
    patience: Patience

    @property
    def store(self) -> str: ...  # noqa: D102

    async def register(self, agent: AgentInfo) -> AgentInfo: ...  # noqa: D102
    async def heartbeat(self, agent_id: str) -> None: ...  # noqa: D102
    async def update(self, agent_id: str, **changes: Unpack[AgentChanges]) -> AgentInfo: ...  # noqa: D102
    async def deregister(self, agent_id: str) -> None: ...  # noqa: D102


class AgentSession(Service):
    """Keeps one agent registered and alive: while the body of its `async with` runs, or from `open` to `aclose`.

    - Entering registers the agent; a store that fails then raises, and there is no session: enter again.
    - A heartbeat follows every `interval`, up to a fifth sooner at random, so that a fleet does not beat in step.
    - When the store says the agent is gone (expired, flushed, restarted empty), the session registers it again, with
      everything that its `update` has changed so far; likewise when the agent's record has become corrupt.
    - A store outage does not end the session: it is logged once, `healthy` is False until a heartbeat gets through, and
      the session tries again after half a second, then at doubling pauses up to `interval`.
    - Leaving deregisters the agent, also when cancelled, within the registry's `timeout`; a store that fails then is
      logged, since the silent agent goes offline by itself. The sessions of one registry that leave a store which does
      not answer wait for `timeout` together, not each: the other deregistrations end in the background.
    - An exception of the body comes out as it is. A bug in the heartbeat, and a cancellation of its task by other code,
      are logged, cancel the body, if it runs in the task that entered, and come out; after `open`, `aclose` raises
      them. Only when both raise is there an `ExceptionGroup`.

    A session may be entered in one task and left in another, and be opened again once it is closed, but not twice at a
    time. Heartbeats run in a copy of the context in which it was opened.

    Attributes:
        interval: Seconds between heartbeats; longer than a third of the registry's `stale_after` is warned of.
        healthy: Whether the store acknowledged the latest heartbeat or registration.
        last_beat_at: When the store last acknowledged one, by this host's clock; None before the first.
    """

    def __init__(self, registry: Registry, agent: AgentInfo, *, interval: float | timedelta | None = None) -> None:
        self._registry = registry
        # An old heartbeat would let the agent be reaped as soon as it is registered.
        self._agent = valid_agent(msgspec.structs.replace(valid_agent(agent), last_heartbeat=None))
        super().__init__(
            f"the session of agent '{printable(self._agent.id)}'",
            registry.timeout,
            FieldLogger(logger, store=registry.store, agent_id=self._agent.id),
        )
        self.interval = _interval(interval, registry)
        self.healthy = False
        self.last_beat_at: datetime | None = None
        # Held while the record is written, so that no registration carries fields that an update has just replaced.
        self._writing = anyio.Lock()
        self._registered = False

    @property
    def agent(self) -> AgentInfo:
        """The record that the session stands for: as first given, with the session's own updates."""
        return self._agent

    async def update(self, **changes: Unpack[AgentChanges]) -> AgentInfo:
        """Change fields of the agent as `AgentRegistry.update` does, and keep them for a later registration.

        Returns:
            The agent after the change; registered anew with it when the store had lost the agent or its record is
            corrupt.

        Raises:
            InvalidAgentError: A value is wrong; nothing has changed.
            RegistryClosedError: The session is not open; it does not bring its agent back.
            BackendError: The store failed; the session does not keep the change, though the store may have made it.
        """
        checked = valid_changes(changes)
        async with self._writing:
            if not self._registered:
                raise RegistryClosedError(f"{self._name} is not open")
            wanted = valid_agent(msgspec.structs.replace(self._agent, **checked))
            try:
                changed = await self._registry.update(wanted.id, **checked)
                self._agent = wanted
            except (AgentNotFoundError, CorruptRecordError) as error:
                changed = await self._register(wanted)
                self._log_registered_again(error)
        return changed

    async def _begin(self) -> None:
        longest = self._registry.stale_after / BEATS_PER_STALE_AFTER
        if self.interval > longest:
            self._log.warning(
                "%s: interval=%g s is longer than a third of the registry's stale_after=%g s, so lost heartbeats can "
                "let a reaper mark the agent offline: choose an interval of at most %g s",
                self._name,
                self.interval,
                self._registry.stale_after,
                longest,
            )
        try:
            await self._register(self._agent)
        except asyncio.CancelledError:
            if self._registered:
                await finish(self._end(), self._timeout)
            raise

    async def _serve(self) -> None:
        outage = Outage(self._log, self._name, self.interval)
        pause = jittered(self.interval)
        loop = asyncio.get_running_loop()
        while True:
            planned = loop.time() + pause
            await asyncio.sleep(pause)
            started_at = loop.time()
            if started_at - planned > self.interval:
                self._log.warning(
                    "%s: the event loop or the process was blocked, so its heartbeat is %.1f s late",
                    self._name,
                    started_at - planned,
                )
            try:
                await self._heartbeat()
            except BackendError as error:
                self.healthy = False
                pause = outage.failed(error)
            else:
                outage.succeeded()
                pause = max(0.0, jittered(self.interval) - (loop.time() - started_at))

    async def _end(self) -> None:
        await self._registry.patience.wait(self._deregister())

    async def _heartbeat(self) -> None:
        try:
            await self._registry.heartbeat(self._agent.id)
            self._acknowledged()
        except (AgentNotFoundError, CorruptRecordError) as error:
            # The session owns its agent, so it may replace a corrupt record.
            async with self._writing:
                await self._register(self._agent)
            self._log_registered_again(error)

    def _log_registered_again(self, error: AgentNotFoundError | CorruptRecordError) -> None:
        if isinstance(error, CorruptRecordError):
            self._log.warning("agent %r is registered again, which replaced its record: %s", self._agent.id, error)
        else:
            self._log.warning("agent %r was gone from the store and is registered again", self._agent.id)

    async def _register(self, agent: AgentInfo) -> AgentInfo:
        # Let it end when cancelled: otherwise it could reach the store after the deregistration.
        return await finish(self._register_now(agent), self._registry.timeout)

    async def _register_now(self, agent: AgentInfo) -> AgentInfo:
        stored = await self._registry.register(agent)
        self._agent = agent
        self._registered = True
        self._acknowledged()
        return stored

    async def _deregister(self) -> bool:
        """Remove the agent; return whether the store answered."""
        self.healthy = False
        async with self._writing:
            self._registered = False
            try:
                await self._registry.deregister(self._agent.id)
            except AgentNotFoundError:
                self._log.info("agent %r was gone from the store before its session ended", self._agent.id)
            except (BackendError, RegistryClosedError, asyncio.CancelledError) as error:
                reason = str(error) or "cancelled by other code"
                self._log.warning("agent %r could not be deregistered and will go offline: %s", self._agent.id, reason)
                return False
        return True

    def _acknowledged(self) -> None:
        self.healthy = True
        self.last_beat_at = system_clock()
        self._registry.patience.restore()


def jittered(interval: float) -> float:
    """Return a pause at random, a fifth shorter than the interval at most, so that sessions do not beat in step."""
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

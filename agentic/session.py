"""An agent's own presence: registered on entry, heartbeating in the background, deregistered on exit."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self, Unpack

import anyio
import msgspec

from agentic.agent import AgentChanges, AgentInfo, valid_agent, valid_changes
from agentic.clock import positive_seconds, system_clock
from agentic.errors import AgentNotFoundError, BackendError, ConfigurationError, CorruptRecordError, RegistryClosedError
from agentic.outage import Outage
from agentic.tasks import background, finish

if TYPE_CHECKING:
    from agentic.registry import AgentRegistry

logger = logging.getLogger("agentic.session")

DEFAULT_INTERVAL: Final = 10.0


class AgentSession(anyio.AsyncContextManagerMixin):
    """Keeps one agent registered and alive while the body of its `async with` runs.

    - Entering registers the agent; a store that fails then raises, and there is no session.
    - A heartbeat follows every `interval`, up to a fifth sooner at random, so that a fleet does not beat in step.
    - When the store says the agent is gone (expired, flushed, restarted empty), the session registers it again, with
      everything that its `update` has changed so far; likewise when the agent's record has become corrupt.
    - A store outage does not end the session: it is logged once, `healthy` is False until a heartbeat gets through, and
      the session tries again after half a second, then at doubling pauses up to `interval`.
    - Leaving deregisters the agent, also when cancelled, within the registry's `timeout`; a store that fails then is
      logged, since the silent agent goes offline by itself.
    - An exception in the body comes out as it is. A bug in the heartbeat cancels the body and comes out as it is.

    Enter and leave it in one task, properly nested with other scopes; each `AgentSession` is good for one `async with`.

    Attributes:
        interval: Seconds between heartbeats.
        healthy: Whether the store acknowledged the latest heartbeat or registration.
        last_beat_at: When the store last acknowledged one, by this host's clock; None before the first.
    """

    def __init__(self, registry: AgentRegistry, agent: AgentInfo, *, interval: float | timedelta | None = None) -> None:
        self._registry = registry
        # A heartbeat of earlier days would let the agent be reaped as soon as it is registered.
        self._agent = valid_agent(msgspec.structs.replace(valid_agent(agent), last_heartbeat=None))
        self.interval = _interval(interval, registry.ttl)
        self.healthy = False
        self.last_beat_at: datetime | None = None
        # Held while the record is written, so that no registration carries fields that an update has just replaced.
        self._writing = anyio.Lock()
        self._open = False

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
            if not self._open:
                raise RegistryClosedError(f"the session of agent {self._agent.id!r} is not open")
            wanted = valid_agent(msgspec.structs.replace(self._agent, **checked))
            try:
                changed = await self._registry.update(wanted.id, **checked)
                self._agent = wanted
            except (AgentNotFoundError, CorruptRecordError) as error:
                changed = await self._register(wanted)
                self._tell_registered_again(error)
        return changed

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self, None]:
        try:
            await self._register(self._agent)
            self._open = True
            async with background(self._beat):
                yield self
        finally:
            if self.last_beat_at is not None:
                await finish(self._deregister(), self._registry.timeout)

    async def _beat(self) -> None:
        outage = Outage(logger, f"session of agent {self._agent.id!r}", self.interval)
        pause = self._jittered()
        while True:
            planned = anyio.current_time() + pause
            await anyio.sleep(pause)
            started_at = anyio.current_time()
            if started_at - planned > self.interval:
                logger.warning(
                    "session of agent %r: the event loop or the process was held, so its heartbeat is %.1f s late",
                    self._agent.id,
                    started_at - planned,
                )
            try:
                await self._heartbeat()
            except BackendError as error:
                self.healthy = False
                pause = outage.failed(error)
            else:
                outage.succeeded()
                pause = max(0.0, self._jittered() - (anyio.current_time() - started_at))

    async def _heartbeat(self) -> None:
        try:
            await self._registry.heartbeat(self._agent.id)
            self._acknowledged()
        except (AgentNotFoundError, CorruptRecordError) as error:
            # The session owns its agent, so it need not leave a corrupt record to anybody else to repair.
            async with self._writing:
                await self._register(self._agent)
            self._tell_registered_again(error)

    def _tell_registered_again(self, error: AgentNotFoundError | CorruptRecordError) -> None:
        if isinstance(error, CorruptRecordError):
            logger.warning("agent %r is registered again, which replaced its record: %s", self._agent.id, error)
        else:
            logger.warning("agent %r was gone from the store and is registered again", self._agent.id)

    async def _register(self, agent: AgentInfo) -> AgentInfo:
        # Finished even when cancelled: one still on its way could reach the store after the session deregistered.
        return await finish(self._register_now(agent), self._registry.timeout)

    async def _register_now(self, agent: AgentInfo) -> AgentInfo:
        stored = await self._registry.register(agent)
        self._agent = agent
        self._acknowledged()
        return stored

    async def _deregister(self) -> None:
        async with self._writing:
            self._open = False
            await self._deregister_now()

    async def _deregister_now(self) -> None:
        try:
            await self._registry.deregister(self._agent.id)
        except AgentNotFoundError:
            logger.info("agent %r was gone from the store before its session ended", self._agent.id)
        except (BackendError, RegistryClosedError) as error:
            logger.warning("agent %r could not be deregistered and will go offline: %s", self._agent.id, error)
        self.healthy = False

    def _acknowledged(self) -> None:
        self.healthy = True
        self.last_beat_at = system_clock()

    def _jittered(self) -> float:
        return self.interval * random.uniform(0.8, 1.0)


def _interval(interval: float | timedelta | None, ttl: float | None) -> float:
    if interval is None:
        return DEFAULT_INTERVAL if ttl is None else min(DEFAULT_INTERVAL, ttl / 3)
    seconds = positive_seconds(interval, "interval")
    if ttl is not None and seconds >= ttl:
        raise ConfigurationError(f"interval must be shorter than the registry's ttl of {ttl:g} s, got {seconds:g}")
    return seconds

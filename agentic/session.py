"""Keep one agent present: register it on entry, send its heartbeats in the background, deregister it on exit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, Protocol, TypeVar, Unpack, cast

from msgspec.structs import replace

from agentic.agent import AgentChanges, AgentInfo, Drain
from agentic.beat_thread import BeatThread, SecondRegistry
from agentic.clock import positive_seconds
from agentic.concurrency import finish
from agentic.errors import ConfigurationError, RegistryClosedError
from agentic.logs import BackgroundLogs, FieldLogger
from agentic.options import flag
from agentic.presence import AgentCalls, Presence
from agentic.service import Service
from agentic.text import printable
from agentic.validation import valid_agent, valid_changes

T = TypeVar("T")

logger = logging.getLogger("agentic.session")

LONGEST_DEFAULT_INTERVAL: Final = 10.0
BEATS_PER_STALE_AFTER: Final = 3
"""Heartbeats that fit into `stale_after`: two in a row may be lost before a reaper marks the agent offline."""


class Registry(AgentCalls, Protocol):
    """The part of `AgentRegistry` that a session uses."""

    ttl: float | None
    stale_after: float

    @property
    def store(self) -> str: ...  # noqa: D102

    def check_open(self) -> None: ...  # noqa: D102
    def second(self, logs: BackgroundLogs) -> SecondRegistry: ...  # noqa: D102
    def beat_thread(self) -> BeatThread: ...  # noqa: D102


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
      registry together wait for one `timeout`, and those with a thread for another one; the remaining deregistrations
      finish in the background.
    - An exception of the body propagates unchanged. If the heartbeat task hits a bug or is cancelled by other code,
      the error is logged, the body is cancelled if it runs in the task that entered, and leaving raises the error;
      after `open`, `aclose` raises it. If the body raises too, leaving raises an `ExceptionGroup`.
    - With `thread=True`, all calls of the session are made in a thread with its own event loop and connections, which
      such sessions of one registry share. While the event loop of the session is blocked, the agent stays alive. If it
      is blocked for longer than `interval`, and the agent gives no reason itself, its `unready` is, for example, "event
      loop blocked for 12 s" until the loop runs again. The heartbeats end when that loop is closed.

    A session may be entered in one task and left in another. It may be reopened once it is closed. Heartbeats run in a
    copy of the context in which it was opened.

    Attributes:
        interval: Seconds between heartbeats. More than a third of the registry's `stale_after` logs a warning.
        replaced: Set when a later start of the agent has registered.
    """

    def __init__(
        self,
        registry: Registry,
        agent: AgentInfo,
        *,
        interval: float | timedelta | None = None,
        thread: bool = False,
    ) -> None:
        self._registry = registry
        # With an old last_heartbeat, the agent would be stale as soon as it is registered.
        agent = valid_agent(replace(valid_agent(agent), last_heartbeat=None))
        super().__init__(
            f"the session of agent '{printable(agent.id)}'",
            registry.timeout,
            FieldLogger(logger, store=registry.store, agent_id=agent.id),
        )
        self.interval = _interval(interval, registry)
        self.replaced = asyncio.Event()
        self._in_thread = flag(thread, "thread")
        if thread:
            registry.second(BackgroundLogs())  # Raises if the store does not support it.
        self._thread: BeatThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._presence = self._new_presence(agent)

    @property
    def agent(self) -> AgentInfo:
        """The agent as the session registers it: as passed in, with the changes made by `update`."""
        return self._presence.agent

    @property
    def healthy(self) -> bool:
        """Whether the latest heartbeat or registration succeeded."""
        return self._presence.healthy

    @property
    def last_beat_at(self) -> datetime | None:
        """When the latest successful one was acknowledged, by this host's clock; None before the first."""
        return self._presence.last_beat_at

    @property
    def incarnation(self) -> int:
        """Which start of the agent this session is; 0 before it was opened."""
        return self._presence.incarnation

    @property
    def draining(self) -> Drain | None:
        """The operator's order under which the agent gets no new work, as of the latest heartbeat or registration."""
        return self._presence.draining

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
        return await self._run(self._presence.update(valid_changes(changes)))

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
        self.replaced.clear()
        self._loop, self._thread = asyncio.get_running_loop(), None
        if self._in_thread:
            self._registry.check_open()
            thread = self._registry.beat_thread()
            await thread.enter(self.interval)
            self._thread = thread
        self._presence = new = self._new_presence(self.agent)
        try:
            # Let a cancelled registration finish; otherwise it could reach the store after the deregistration.
            # In the thread, the heartbeats begin with it: the event loop may be blocked from now on.
            await finish(self._run(new.start(self._name) if self._in_thread else new.register()), self._timeout)
        except BaseException:
            await finish(self._end(), self._timeout)
            raise

    def _new_presence(self, agent: AgentInfo) -> Presence:
        thread, loop = self._thread, self._loop
        if thread is None:
            return Presence(self._registry, agent, self._log, interval=self.interval, on_replaced=self._set_replaced)

        def tell(presence: Presence) -> None:
            with suppress(RuntimeError):  # The event loop is closed.
                cast("asyncio.AbstractEventLoop", loop).call_soon_threadsafe(self._set_replaced, presence)

        return Presence(
            thread.registry,
            agent,
            thread.logs.log(self._log),
            interval=self.interval,
            blocked_for=lambda: thread.blocked_for,
            on_replaced=tell,
        )

    def _set_replaced(self, presence: Presence) -> None:
        if presence is self._presence:  # Not one of an earlier event loop.
            self.replaced.set()

    async def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call of the presence in the event loop of its registry."""
        if not self._in_thread:
            return await call
        try:
            if self._thread is None:
                raise RegistryClosedError(f"{self._name} is not open")
            self._registry.check_open()
        except RegistryClosedError:
            call.close()
            raise
        return await BeatThread.result(self._thread.start(call))

    async def _serve(self) -> None:
        if self._in_thread:
            await self._run(self._presence.beats())
        else:
            await self._presence.keep(self._name)
        await asyncio.get_running_loop().create_future()  # It was replaced: wait until the session is left.

    async def _end(self) -> None:
        try:
            await self._run(self._presence.leave())
        except RegistryClosedError as error:
            if self._presence.is_registered:
                self._presence.leave_behind(error)
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                await thread.leave()


def _interval(interval: float | timedelta | None, registry: Registry) -> float:
    ttl = registry.ttl
    if interval is None:
        silence = registry.stale_after if ttl is None else min(registry.stale_after, ttl)
        return min(LONGEST_DEFAULT_INTERVAL, silence / BEATS_PER_STALE_AFTER)
    seconds = positive_seconds(interval, "interval")
    if ttl is not None and seconds >= ttl:
        raise ConfigurationError(f"interval must be shorter than the registry's ttl of {ttl:g} s, got {seconds:g}")
    return seconds

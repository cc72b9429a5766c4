"""Tell the store about one start of an agent: registrations, heartbeats, changes, and its deregistration."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol, Unpack

import anyio
from msgspec.structs import replace

from agentic.agent import CHANGEABLE, AgentChanges, AgentInfo, Beat, Drain
from agentic.backoff import Backoff
from agentic.clock import system_clock
from agentic.concurrency import finish, mark_retrieved
from agentic.deregistration_budget import DeregistrationBudget
from agentic.errors import (
    AgentNotFoundError,
    AgentReplacedError,
    BackendError,
    CorruptRecordError,
    InvalidAgentError,
    RegistryClosedError,
    RegistryError,
)
from agentic.logs import FieldLogger
from agentic.text import printable
from agentic.validation import check_size, valid_agent

SUSPICIOUS_BEATS: Final = 5
"""Heartbeats in a row that find a rewritten record, after which this is logged as an error."""

CHECKS_PER_INTERVAL: Final = 8
"""How often a session in a thread checks whether the event loop is blocked, per `interval`."""

_LOST: Final = (AgentNotFoundError, CorruptRecordError, InvalidAgentError)
"""Errors after which the agent is registered again; see `_raise_unless_lost`."""


class AgentCalls(Protocol):
    """The part of `AgentRegistry` that a presence uses."""

    timeout: float
    deregistration_budget: DeregistrationBudget
    direct_starts: dict[str, int]

    async def register(self, agent: AgentInfo, *, incarnation: int) -> AgentInfo: ...  # noqa: D102
    async def heartbeat(self, agent_id: str, *, incarnation: int) -> Beat: ...  # noqa: D102
    async def update(  # noqa: D102
        self, agent_id: str, *, incarnation: int, **changes: Unpack[AgentChanges]
    ) -> AgentInfo: ...
    async def deregister(self, agent_id: str, *, incarnation: int) -> None: ...  # noqa: D102


class Presence:
    """One start of an agent in the store. Its calls are made in one event loop; other threads may read its attributes.

    Attributes:
        agent: The agent as its owner wants it.
        incarnation: Which start of the agent this is; 0 before it was registered.
        healthy: Whether the latest heartbeat or registration succeeded.
        last_beat_at: When the latest successful one was acknowledged, by this host's clock; None before the first.
        draining: The order to drain the agent, as of then.
        is_registered: Whether it has been registered and not been deregistered.
    """

    def __init__(
        self,
        registry: AgentCalls,
        agent: AgentInfo,
        log: FieldLogger,
        *,
        interval: float,
        blocked_for: Callable[[], float] | None = None,
        on_replaced: Callable[[Presence], object],
    ) -> None:
        """Create a presence that is not registered.

        Args:
            registry: Where its agent is registered.
            agent: The agent.
            log: Where to log.
            interval: Seconds between heartbeats.
            blocked_for: Returns for how many seconds the event loop of the agent has been blocked; None if the
                heartbeats are sent in that loop.
            on_replaced: Called with this presence when a later start of the agent has registered.
        """
        self.agent = agent
        self.incarnation = 0
        self.healthy = False
        self.last_beat_at: datetime | None = None
        self.draining: Drain | None = None
        self.is_registered = False
        self._registry = registry
        self._log = log
        self._interval = interval
        self._blocked_for = blocked_for
        self._on_replaced = on_replaced
        self._blocked = 0.0
        """For how many seconds the event loop of the agent has been blocked, as of the latest call; 0 if not longer
        than `interval`."""
        self._shown_unready = ""
        """The reason for taking no work that was last written to the store."""
        self._beats: asyncio.Task[None] | None = None
        self._rewritten_beats = 0
        self._successor: int | None = None
        # Serializes writes of the record, so that no registration restores fields that an update has just replaced.
        self._writing = anyio.Lock()

    # --- called by the owner of the agent ---

    async def register(self) -> None:
        """Register the agent as a new start.

        Raises:
            BackendError: The store failed.
        """
        async with self._writing:
            await self._register(self.agent)

    async def start(self, name: str) -> None:
        """Register the agent as a new start, and begin to send heartbeats in the background. Wait with `beats`.

        Args:
            name: The name of the session in logs.

        Raises:
            BackendError: The store failed.
        """
        await self.register()
        self._beats = asyncio.create_task(self.keep(name))
        self._beats.add_done_callback(mark_retrieved)

    async def beats(self) -> None:
        """Wait until the heartbeats that `start` has begun end, and raise their error."""
        if self._beats is not None:
            await asyncio.wait([self._beats])
            self._beats.result()

    async def update(self, changes: AgentChanges) -> AgentInfo:
        """Change checked fields of the agent. If it has gone from the store, register it again with the change.

        Raises:
            AgentReplacedError: A later start of the agent has registered; nothing was changed.
            InvalidAgentError: The agent would be too long; nothing was changed.
            RegistryClosedError: The agent is not registered, or has left; nothing was changed.
            BackendError: The store failed; the change is dropped, but the store may have applied it.
        """
        async with self._writing:
            if not self.is_registered:
                raise RegistryClosedError(f"the session of agent '{printable(self.agent.id)}' is not open")
            if self._successor is not None:
                raise AgentReplacedError(self.agent.id, self._successor)
            wanted = valid_agent(replace(self.agent, **changes))
            if self._shown_unready != wanted.unready:  # The event loop was blocked until now.
                changes = {"unready": wanted.unready, **changes}
            try:
                return await self._change(wanted, changes)
            except AgentReplacedError as error:
                self._be_replaced(error)
                raise

    async def _change(self, wanted: AgentInfo, changes: AgentChanges) -> AgentInfo:
        try:
            changed = await self._registry.update(wanted.id, incarnation=self.incarnation, **changes)
        except _LOST as error:
            _raise_unless_lost(error)
            changed = await finish(self._register(wanted), self._registry.timeout)
            self._log_registered_again(error)
        else:
            self.agent = wanted
            self._shown_unready = changes.get("unready", self._shown_unready)
        return changed

    async def leave(self) -> None:
        """Deregister the agent while the registry's budget lasts, unless it was replaced or is not registered.

        A failure is only logged.
        """
        if self._beats is not None:
            self._beats.cancel()
        await self._registry.deregistration_budget.wait(self._deregister())

    async def _deregister(self) -> bool:
        """Remove the agent. Return whether the store answered."""
        self.healthy = False
        async with self._writing:
            if not self.is_registered:
                return False
            self.is_registered = False
            if self._successor is not None:
                return True
            try:
                await self._registry.deregister(self.agent.id, incarnation=self.incarnation)
            except AgentReplacedError as error:
                self._be_replaced(error)
            except AgentNotFoundError:
                self._log.info("agent %r was already gone from the store when its session ended", self.agent.id)
            except (BackendError, InvalidAgentError, RegistryClosedError, asyncio.CancelledError) as error:
                self.leave_behind(error)
                return False
        return True

    def leave_behind(self, error: BaseException) -> None:
        """Give up the agent, which could not be deregistered."""
        self.healthy = self.is_registered = False
        reason = str(error) or "cancelled by other code"
        self._log.warning("agent %r could not be deregistered and will go offline: %s", self.agent.id, reason)

    # --- heartbeats ---

    async def keep(self, name: str) -> None:
        """Send heartbeats until the agent is replaced or leaves, through outages of the store.

        Args:
            name: The name of the session in logs.
        """
        backoff = Backoff(self._log, name, self._interval)
        pause = jittered(self._interval)
        loop = asyncio.get_running_loop()
        while not self._has_ended():
            planned = loop.time() + pause
            await self._sleep(pause)
            if self._has_ended():
                break
            started_at = loop.time()
            if started_at - planned > self._interval:
                self._log.warning(
                    "%s: the event loop or the process was blocked, so its heartbeat is %.1f s late",
                    name,
                    started_at - planned,
                )
            try:
                await self._beat()
            except AgentReplacedError as error:
                self._be_replaced(error)
            except BackendError as error:
                self.healthy = False
                pause = backoff.failed(error)
                self._blocked = self._blocked_now()  # Do not retry before the pause is over.
            else:
                backoff.succeeded()
                pause = max(0.0, jittered(self._interval) - (loop.time() - started_at))

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until the event loop of the agent is found blocked, or found to run again."""
        if self._blocked_for is None:
            await asyncio.sleep(seconds)
            return
        time = asyncio.get_running_loop().time
        end, step = time() + seconds, self._interval / CHECKS_PER_INTERVAL
        while (left := end - time()) > 0 and bool(self._blocked_now()) == bool(self._blocked):  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(min(left, step))

    def _blocked_now(self) -> float:
        seconds = 0.0 if self._blocked_for is None else self._blocked_for()
        return seconds if seconds > self._interval else 0.0

    def _unready(self, agent: AgentInfo) -> str:
        """Return why the agent takes no work now: its owner's reason, or that its event loop is blocked."""
        if agent.unready or not self._blocked:
            return agent.unready
        unready = f"event loop blocked for {self._blocked:.{0 if self._blocked >= 10 else 1}f} s"
        try:
            check_size(replace(agent, unready=unready))
        except InvalidAgentError:
            return ""
        return unready

    async def _beat(self) -> None:
        self._blocked = self._blocked_now()
        try:
            beat = await self._registry.heartbeat(self.agent.id, incarnation=self.incarnation)
            self.draining = beat.draining
            if beat.rewritten:
                await self._write_again()
            else:
                self._rewritten_beats = 0
                await self._show_readiness()
            self._acknowledged()
        except _LOST as error:
            _raise_unless_lost(error)
            await self._register_again(error)

    async def _show_readiness(self) -> None:
        """Write why the agent takes no work, if that has changed because its event loop is blocked or runs again."""
        if self._unready(self.agent) == self._shown_unready:
            return
        async with self._writing:
            if self._has_ended():
                return
            before, unready = self._shown_unready, self._unready(self.agent)
            try:
                await self._registry.update(self.agent.id, incarnation=self.incarnation, unready=unready)
            except InvalidAgentError as error:
                if error.field == "incarnation":
                    raise
                return  # With what another program has written, the record would be too long.
            self._shown_unready = unready
        if unready == self.agent.unready:
            self._log.warning("agent %r: its event loop runs again: was shown as %r", self.agent.id, before)
        elif before == self.agent.unready:
            self._log.warning("agent %r is shown as unready: %s", self.agent.id, unready)

    async def _write_again(self) -> None:
        """Write the agent's fields, except `status`, into a record that has lost some, and its incarnation."""
        async with self._writing:
            if self._has_ended():
                return
            fields: AgentChanges = {name: getattr(self.agent, name) for name in CHANGEABLE if name != "status"}  # type: ignore[assignment]
            fields["unready"] = unready = self._unready(self.agent)
            try:
                await self._registry.update(self.agent.id, incarnation=self.incarnation, **fields)
                self._shown_unready = unready
            except InvalidAgentError as error:
                if error.field == "incarnation":
                    raise
                # What the other program has written makes the record too long.
                await finish(self._register(self.agent), self._registry.timeout)
        self._rewritten_beats += 1
        if self._rewritten_beats == SUSPICIOUS_BEATS:
            self._log.error(
                "agent %r: another program has rewritten its record before each of the last %d heartbeats: give each "
                "program an id of its own",
                self.agent.id,
                SUSPICIOUS_BEATS,
            )

    async def _register_again(self, error: RegistryError) -> None:
        """Register the agent, which a heartbeat has not found; this may replace a corrupt record."""
        async with self._writing:
            if self._has_ended():
                return
            await finish(self._register(self.agent), self._registry.timeout)
        self._log_registered_again(error)

    async def _register(self, agent: AgentInfo) -> AgentInfo:
        self._blocked = self._blocked_now()
        shown = replace(agent, unready=self._unready(agent))
        try:
            stored = await self._registry.register(shown, incarnation=self.incarnation)
        except InvalidAgentError as error:
            if error.field != "incarnation":
                raise
            # The store's clock was set back by more than a year, so that it no longer believes this incarnation.
            stored = await self._registry.register(shown, incarnation=0)
        self._registry.direct_starts.pop(agent.id, None)  # Whoever replaces this start gets a warning.
        self.agent, self._shown_unready = agent, shown.unready
        self.incarnation = stored.incarnation
        self.draining = stored.draining
        self.is_registered = True
        self._acknowledged()
        return stored

    def _has_ended(self) -> bool:
        """Return whether the agent has left or was replaced, so that nothing more may be written."""
        return not self.is_registered or self._successor is not None

    def _acknowledged(self) -> None:
        self.healthy = self.is_registered and self._successor is None
        self.last_beat_at = system_clock()
        self._registry.deregistration_budget.reset()

    def _be_replaced(self, error: AgentReplacedError) -> None:
        """Record that a later start of the agent has registered; nothing more is sent."""
        self.healthy = False
        if self._successor is None:
            self._successor = error.incarnation
            self._log.error("agent %r was replaced by a later start of it: end this program", self.agent.id)
            self._on_replaced(self)

    def _log_registered_again(self, error: RegistryError) -> None:
        if isinstance(error, CorruptRecordError):
            self._log.warning("agent %r was registered again, replacing its corrupt record: %s", self.agent.id, error)
        else:
            self._log.warning("agent %r was gone from the store and was registered again", self.agent.id)


def _raise_unless_lost(error: RegistryError) -> None:
    """Raise an error about invalid fields; one about the incarnation means that the store no longer believes it."""
    if isinstance(error, InvalidAgentError) and error.field != "incarnation":
        raise error


def jittered(interval: float) -> float:
    """Return the interval shortened by up to a fifth at random, so that the heartbeats of a fleet spread out."""
    return interval * random.uniform(0.8, 1.0)

"""The contract every store keeps: what each call promises, checked here, stored by a backend's primitives."""

from __future__ import annotations

import asyncio
import builtins
import logging
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from copy import copy
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar, Unpack

from agentic.abc import Backend
from agentic.agent import AgentChanges, AgentInfo
from agentic.backoff import Backoff
from agentic.clock import duration, positive_seconds
from agentic.concurrency import SLACK, result_within, start_detached, wait_shielded
from agentic.dispatch.affinity import Affinity
from agentic.dispatch.batcher import copy_error
from agentic.dispatch.dispatcher import Dispatcher
from agentic.errors import (
    AgentNotFoundError,
    BackendError,
    BackendUnavailableError,
    ConfigurationError,
    CorruptRecordError,
    InvalidAgentError,
    RegistryClosedError,
    RegistryError,
    RegistryOpenError,
)
from agentic.findings import Finding
from agentic.logs import FieldLogger
from agentic.options import count, function
from agentic.page import MAX_PAGE, Page, Position
from agentic.session import AgentSession, DeregistrationBudget
from agentic.text import type_name
from agentic.urls import StoreURL
from agentic.validation import valid_agent, valid_changes, valid_id

T = TypeVar("T")

LONGEST_PAUSE: Final = 5.0
"""Seconds between two tries to open a registry whose store is late, at most."""


class AgentRegistry:
    """A registry of live agents; one contract, kept by every store.

    Constructing does no I/O; entering (`async with registry:`) opens it, leaving closes only what it opened. Where
    `async with` cannot be used, `await registry` opens it and returns it, and `aclose` closes it. Every call

    - checks its arguments before any I/O and raises `InvalidAgentError` or `ConfigurationError`, with nothing changed;
    - is atomic for one agent: its precondition is part of the write in the store;
    - takes effect on one agent in the order in which this registry's calls on it were issued;
    - ends within `timeout` seconds (those that walk the fleet: within `timeout` for each page) and raises
      `BackendError` when the store fails or does not answer: an outage is never an empty answer;
    - may be cancelled without harm to any other caller; a cancelled or failed write may still have happened;
    - raises `RegistryClosedError` outside `async with`.

    A store is a subclass, registered as an entry point of the group `agentic.backends` under its scheme. The arguments
    of its constructor are its options, `ttl`, `timeout`, `stale_after` and `wait` among them. It overrides
    `options_in`, `scratch` and `is_shared` where the defaults do not fit.

    An agent is alive while it heartbeats, offline (still listed) once `reap` finds it silent, and gone when nobody
    registered it or sent its heartbeat for the registry's `ttl`. The store's clock decides, never the caller's.

    Attributes:
        ttl: Seconds after its last registration or heartbeat at which an agent is **gone**; None keeps it until
            deregistered. Longer than `stale_after`.
        timeout: Seconds a call may take.
        stale_after: Seconds of silence after which a reaper of this registry marks an agent **offline**, unless the
            reaper is given a `ttl` of its own. Longer than the `interval` of sessions.
        wait: Seconds for which `open` tries again while the store is unavailable.
        corrupt_records: How many corrupt records `list`, `scan`, `reap` and `flush` have skipped so far.
    """

    is_shared: ClassVar[bool] = True
    """Whether other processes see the agents of such a registry."""

    _logger: ClassVar[logging.Logger] = logging.getLogger("agentic.registry")

    def __init__(
        self, backend: Backend, *, stale_after: float | timedelta = 30.0, wait: float | timedelta = 0.0
    ) -> None:
        """Take a store, and check the options that every registry has.

        Args:
            backend: The store, for this registry alone.
            stale_after: Seconds of silence after which a reaper marks an agent offline, by default.
            wait: Seconds for which opening tries again while the store is unavailable.

        Raises:
            ConfigurationError: `backend` is none, `stale_after` is not a finite number of seconds greater than 0, or
                `wait` is negative or not finite.
        """
        if not isinstance(backend, Backend):
            raise ConfigurationError(f"backend: must be a Backend, got {type_name(backend)}")
        self.backend = backend
        backend.on_corrupt = self._count_corrupt
        self.ttl = backend.ttl
        self.timeout = backend.timeout
        self.stale_after = positive_seconds(stale_after, "stale_after")
        self.wait = duration(wait, "wait").total_seconds()
        self.corrupt_records = 0
        self._affinity: Affinity | None = None
        """Where this registry is open, being opened, or not yet closed."""
        self._open_dispatcher: Dispatcher | None = None
        # An overdue call ends a little after `timeout`.
        self.deregistration_budget = DeregistrationBudget(1.1 * self.timeout)

    @classmethod
    def options_in(cls, url: StoreURL) -> dict[str, Any]:
        """Return the arguments of the class that a URL gives outside its query, for `open_registry`.

        They count before the fields of a configuration, and keywords count before them. By default `url`, the URL
        without its query.

        Raises:
            ConfigurationError: The URL has a part that this store does not take; the message shows no part of it.
        """
        return {"url": url.without_parameters()}

    @classmethod
    def scratch(cls, **options: Any) -> AbstractContextManager[Self]:
        """Make a registry for the demo, on the store that `options` name and apart from its agents; not yet open.

        Leaving the context deletes what the store keeps beside the agents, such as a temporary file.

        Args:
            **options: Arguments of the class.

        Raises:
            ConfigurationError: The store has no such registry, as by default.
        """
        raise ConfigurationError(f"{cls.__name__} has no scratch registry, which the demo needs: name another store")

    @property
    def store(self) -> str:
        """What names the store in messages and logs: a URL without its secrets."""
        return self.backend.store

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store!r}, ttl={self.ttl})"

    # --- lifecycle ---

    async def open(self) -> None:
        """Connect, and prove that the store answers; for those who cannot use `async with`.

        Each try has `timeout`. While the store is unavailable, tries follow at growing pauses for `wait` seconds.

        Raises:
            BackendError: The store cannot be reached or used, or did not answer in time; nothing stays open.
            RegistryOpenError: The registry is open already, or still closing.
            RegistryClosedError: No asyncio event loop is running, as under trio.
        """
        end = monotonic() + self.wait
        backoff = Backoff(self._log, "opening the registry", LONGEST_PAUSE)
        failure: BackendUnavailableError | None = None
        while True:
            try:
                await self._open_now()
            except BackendUnavailableError as error:
                failure = error
            except RegistryOpenError:
                if failure is None:  # Else what the try before has left is still being closed.
                    raise
            else:
                backoff.succeeded()
                return
            left = end - monotonic()
            if left <= 0:
                raise failure
            await asyncio.sleep(min(backoff.failed(failure), left))

    async def _open_now(self) -> None:
        if self._affinity is not None and not self._affinity.is_gone():
            raise RegistryOpenError
        self._forget()
        self._affinity = affinity = Affinity()
        connecting = start_detached(self.backend.open())
        try:
            await result_within(connecting, self.timeout * (1 + SLACK))  # The store's own errors say more.
            self._open_dispatcher = Dispatcher(self.backend, affinity)
            # Not __del__: at the end of a process, Python collects no registry that its own backend refers to.
            self._unclosed = weakref.finalize(self, _warn_unclosed, repr(self))
        except BaseException:
            await wait_shielded(self._end(self._abandon(connecting)), self.timeout)
            raise

    async def aclose(self) -> None:
        """Close what `open` opened, even when cancelled; does nothing when the registry is not open.

        Calls already issued, walks of the fleet included, have `timeout` to finish; the rest fail with
        `RegistryClosedError`. Where the event loop of `open` has ended, connections are dropped as they are.

        Raises:
            BackendError: The store did not close within `timeout`.
            RegistryClosedError: The registry was opened in another event loop, or before a fork.
        """
        dispatcher = self._open_dispatcher
        if dispatcher is None:
            return
        if dispatcher.affinity.is_gone():
            self._forget()
            return
        dispatcher.affinity.check()
        self._open_dispatcher = None
        self._unclosed.detach()
        await result_within(self._end(self._close(dispatcher)), 4 * self.timeout, finish=True)

    def _forget(self) -> None:
        """Drop what was opened in an event loop or a process that is gone."""
        if self._open_dispatcher is not None:
            self._unclosed.detach()
        self._open_dispatcher = self._affinity = None

    def _end(self, closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start to close; the registry can be opened again when that has ended, however long the store takes."""
        task = start_detached(closing)

        def closed(_: object) -> None:
            self._affinity = None

        task.add_done_callback(closed)
        return task

    async def _abandon(self, connecting: asyncio.Task[None]) -> None:
        """Close what a failed or cancelled `_connect` has left, once it has ended."""
        try:
            try:
                await asyncio.wait([connecting])
            finally:
                await self.backend.close()
        except Exception as error:  # noqa: BLE001  the caller of open gets the first one
            self._log.warning("what a failed open had left could not be closed: %s", error)

    async def _close(self, dispatcher: Dispatcher) -> None:
        # A program may cancel every task. Then what that has interrupted is disconnected by the second call.
        with suppress(asyncio.CancelledError):
            await dispatcher.close()
            await self._disconnect_in_time()
        await self._disconnect_in_time()

    async def _disconnect_in_time(self) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                await self.backend.close()
        except TimeoutError as error:
            raise BackendUnavailableError(f"the store did not close within {self.timeout:g} s") from error

    async def _opened(self) -> Self:
        await self.open()
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """Open the registry, and return it: `registry = await open_registry(...)`; close it with `aclose`."""
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to copy or pickle an open registry: the copy would wait for answers that only the original gets."""
        if self._affinity is not None:
            raise TypeError("an open registry cannot be copied or pickled")
        budget = DeregistrationBudget(1.1 * self.timeout)
        state = vars(self) | {"backend": copy(self.backend), "deregistration_budget": budget}
        state.pop("_unclosed", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.backend.on_corrupt = self._count_corrupt

    # --- one agent ---

    async def register(self, agent: AgentInfo) -> AgentInfo:
        """Add an agent, or replace the one with its id, and start its `ttl` anew.

        A `last_heartbeat` of None, or one in the store's future, is stored as the store's now.

        Returns:
            The agent as stored.

        Raises:
            InvalidAgentError: A field is wrong; the message names it.
            BackendError: The store failed; the agent may be registered all the same.
        """
        agent = valid_agent(agent)
        stored = await self._dispatcher.insert(agent.id, agent)
        return _settled(stored, agent.id)

    async def heartbeat(self, agent_id: str) -> None:
        """Stamp the store's time on an agent and start its `ttl` anew; an offline one becomes available.

        Never creates an agent, and changes nothing else of it: a busy one stays busy.

        Raises:
            AgentNotFoundError: No such agent: never registered, deregistered, or gone after its `ttl`.
            InvalidAgentError: The id is wrong.
            BackendError: The store failed; the heartbeat may have been stamped all the same.
        """
        agent_id = valid_id(agent_id)
        present = await self._dispatcher.touch(agent_id, agent_id)
        if present is not True:  # The one call of a fleet that is made all the time, and nearly always so.
            _settled(present, agent_id)

    async def heartbeat_many(self, ids: Iterable[str]) -> set[str]:
        """Do what `heartbeat` does for many agents, in as few round trips as the store allows.

        Atomic for each agent, not for all together.

        Returns:
            The ids that were not there.

        Raises:
            InvalidAgentError: One of the ids is wrong; no heartbeat was stamped.
            BackendError: The store failed, or the record of one agent is corrupt; others may have been stamped.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise InvalidAgentError("ids", f"ids: must be an iterable of ids, got {type_name(ids)}")
        unique = list(dict.fromkeys(valid_id(agent_id) for agent_id in ids))
        touch = self._dispatcher.touch
        outcomes = await asyncio.gather(*(touch(agent_id, agent_id) for agent_id in unique))
        for each in outcomes:
            if isinstance(each, RegistryError):
                raise copy_error(each)
        return {agent_id for agent_id, present in zip(unique, outcomes, strict=True) if not present}

    async def get(self, agent_id: str) -> AgentInfo:
        """Return an agent.

        Raises:
            AgentNotFoundError: No such agent.
            InvalidAgentError: The id is wrong.
            BackendError: The store failed, or the stored record is corrupt.
        """
        agent_id = valid_id(agent_id)
        found = await self._dispatcher.fetch(agent_id, agent_id)
        return _settled(found, agent_id)

    async def update(self, agent_id: str, **changes: Unpack[AgentChanges]) -> AgentInfo:
        """Change the named fields of an agent in one atomic step and leave every other one as it is.

        Neither a heartbeat nor a renewal of the `ttl`. Fields: `status`, `current_load`, `name`, `capabilities`,
        `max_load`, `metadata` (replaced whole).

        Returns:
            The agent after the change.

        Raises:
            AgentNotFoundError: No such agent.
            InvalidAgentError: A value is wrong, or the record would be too long.
            TypeError: A name is none of the fields above.
            BackendError: The store failed; the change may have been made all the same.
        """
        agent_id = valid_id(agent_id)
        checked = valid_changes(changes)
        if not checked:
            return await self.get(agent_id)
        changed = await self._dispatcher.patch(agent_id, (agent_id, checked))
        return _settled(changed, agent_id)

    async def deregister(self, agent_id: str) -> None:
        """Remove an agent; only `register` brings it back.

        Raises:
            AgentNotFoundError: No such agent.
            InvalidAgentError: The id is wrong.
            BackendError: The store failed; the agent may be removed all the same.
        """
        agent_id = valid_id(agent_id)
        removed = await self._dispatcher.delete(agent_id, agent_id)
        _settled(removed, agent_id)

    def session(self, agent: AgentInfo, *, interval: float | timedelta | None = None) -> AgentSession:
        """Return a session, which keeps an agent registered and alive: use it as `async with`, or open and close it.

        Args:
            agent: Registered on entry, deregistered on exit.
            interval: Seconds between heartbeats; by default 10, or a third of `stale_after` or of `ttl` where one is
                shorter. A longer one than a third of `stale_after` is warned of in the log.

        Raises:
            ConfigurationError: `interval` is not a finite number of seconds greater than 0, or not shorter than `ttl`.
        """
        return AgentSession(self, agent, interval=interval)

    # --- the whole fleet ---

    async def list(self) -> builtins.list[AgentInfo]:
        """Return every agent once, in no particular order; a corrupt record is skipped with a logged warning.

        An agent registered or removed meanwhile may or may not be among them; every other one is.

        Raises:
            BackendError: The store failed: never a shorter list.
        """
        agents: builtins.list[AgentInfo] = []
        with self._dispatcher.walk(self.backend.scan) as pages:
            async for page in pages:
                agents += page
        return agents

    async def scan(self) -> AsyncGenerator[AgentInfo, None]:
        """Yield what `list` returns, page by page, holding in memory one page of agents, and the ids of all so far.

        Raises:
            BackendError: The store failed, perhaps after some agents were yielded.
        """
        with self._dispatcher.walk(self.backend.scan) as pages:
            async for page in pages:
                for agent in page:
                    yield agent

    async def page(self, cursor: str | None = None, limit: int = 500) -> Page:
        """Return a part of the fleet in the order of the agents' ids, and a cursor for the next part.

        For a console, or a client over HTTP, that shows a fleet piece by piece: call it without a cursor, and go on
        with each page's cursor until that is None. An agent that stays is returned exactly once by such a walk; one
        that comes or goes meanwhile may or may not be. A corrupt record is skipped with a logged warning.

        A cursor is a text that URLs take as it is, at most 700 characters long. It names the id that the walk has come
        to, which anybody can read who has it. It stays good: it may be kept for any time, used again, and given to
        another process that has the same store open. The order is that of the ids' UTF-8.

        SQLite reads the page alone; memory passes over all ids. Redis keeps no order, so there the first page of a walk
        reads the keys of the whole database, and so does one page in every 20,000 agents after that. Where the walk
        goes on in another registry object, or after pages of eight other walks, the next page does so as well.

        Args:
            cursor: The cursor of the page before; None begins a walk.
            limit: How many agents the page has at most, 1 to 10,000. It has fewer only where it is the last one.

        Raises:
            ConfigurationError: `cursor` is none that a page had, or `limit` is out of range; there was no I/O.
            BackendError: The store failed, or did not answer within `timeout`.
        """
        limit = count(limit, "limit", most=MAX_PAGE)
        position = Position.first() if cursor is None else Position.of(cursor)
        return await self._dispatcher.bounded(lambda: self._page(position, limit))

    async def _page(self, position: Position, limit: int) -> Page:
        agents: builtins.list[AgentInfo] = []
        after: str | None = position.after
        while after is not None and len(agents) < limit:
            found, after = await self.backend.page(after, limit - len(agents), position.walk)
            agents += found
        return Page(tuple(agents), None if after is None else Position(position.walk, after).cursor())

    async def reap(
        self, ttl: float | timedelta | None = None, *, on_marked: Callable[[builtins.list[str]], object] | None = None
    ) -> builtins.list[str]:
        """Mark offline every agent whose last heartbeat is more than `ttl` ago by the store's clock.

        One exactly `ttl` old is alive. Each is marked in one atomic step that a heartbeat landing first prevents.
        The agent's remaining time in the registry is kept. A cancelled call lets the page under way end, within
        `timeout`, before it raises.

        Args:
            ttl: How long an agent may be silent, not the registry's `ttl`, after which it is gone. Seconds or a
                `timedelta`; finite and not negative; `stale_after` by default.
            on_marked: Called with the ids of each page that marked any, in the event loop, as soon as the store has
                acknowledged them and whatever ends the call afterwards: an error, a cancellation, `aclose`. Its
                exceptions end the call.

        Returns:
            The ids that this call marked. Each time that an agent goes offline is returned by one call: another one
            returns it only after a heartbeat, a registration or an update of its status has brought it back.

        Raises:
            ConfigurationError: An argument is wrong.
            BackendError: The store failed; its `reaped` holds the ids marked before that.
            RegistryClosedError: The registry was closed; its `reaped` holds the ids marked before that.
        """
        span = duration(self.stale_after if ttl is None else ttl, "ttl")
        if on_marked is not None:
            function(on_marked, "on_marked")
        reaped: builtins.list[str] = []
        context = copy_context()

        def marked(ids: Sequence[str]) -> None:
            reaped.extend(ids)
            if ids and on_marked is not None:
                context.run(on_marked, builtins.list(ids))

        try:
            with self._dispatcher.walk(partial(self.backend.sweep, span), marked) as pages:
                async for _ in pages:
                    pass
        except (BackendError, RegistryClosedError) as error:
            error.reaped = tuple(reaped)
            raise
        return reaped

    async def store_time(self) -> datetime:
        """Return the store's own time, by which agents are alive or stale; of a cluster, the first primary's.

        Raises:
            BackendError: The store failed.
        """
        return (await self.store_times())[0]

    async def store_times(self) -> Sequence[datetime]:
        """Return the time of each of the store's servers, in an order that stays while the servers do."""
        return await self._dispatcher.bounded(self.backend.times)

    async def diagnose(self) -> AsyncGenerator[Finding, None]:
        """Yield what an operator should know of the store: its own state, not the agents in it. Changes nothing.

        Each exchange with the store ends within `timeout`. A store without anything to look at yields nothing.

        Raises:
            BackendError: The store failed, perhaps after some findings were yielded.
        """
        with self._dispatcher.walk(self.backend.diagnose) as pages:
            async for page in pages:
                for finding in page:
                    yield finding

    async def flush(self) -> int:
        """Delete every agent of this registry, and nothing else in the store.

        Returns:
            How many there were.

        Raises:
            BackendError: The store failed; some agents may be deleted.
        """
        deleted = 0
        with self._dispatcher.walk(self.backend.clear) as counts:
            async for count in counts:
                deleted += count
        return deleted

    # --- how calls reach the store ---

    def _count_corrupt(self, error: CorruptRecordError) -> None:
        self.corrupt_records += 1
        self._log.warning("skipped: %s", error, extra={"agent_id": error.agent_id})

    def check_open(self) -> None:
        """Check that calls can be made here and now; no I/O.

        Raises:
            RegistryClosedError: The registry is not open, or was opened in another event loop or process.
        """
        _ = self._dispatcher

    @property
    def _log(self) -> FieldLogger:
        return FieldLogger(self._logger, store=self.store)

    @property
    def _dispatcher(self) -> Dispatcher:
        dispatcher = self._open_dispatcher
        if dispatcher is None:
            raise RegistryClosedError
        dispatcher.affinity.check()
        return dispatcher


def _warn_unclosed(registry: str) -> None:
    warnings.warn(f"unclosed {registry}: use 'async with', or await aclose()", ResourceWarning, stacklevel=2)


def _settled(outcome: T | RegistryError | None, agent_id: str) -> T:
    """Return one agent's outcome, or raise what it means."""
    if isinstance(outcome, RegistryError):
        raise copy_error(outcome)
    if not outcome:
        raise AgentNotFoundError(agent_id)
    return outcome

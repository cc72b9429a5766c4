"""The registry: validates each call, and passes it to a `Backend`. The behaviour is the same for every store."""

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
from typing import Any, ClassVar, Final, Self, TypeVar, Unpack, cast

from msgspec.structs import replace

from agentic.abc import Backend, DrainOrder
from agentic.agent import USUAL_BEAT, AgentChanges, AgentInfo, Beat, Drain
from agentic.backoff import Backoff
from agentic.beat_thread import BeatThread
from agentic.clock import duration, positive_seconds
from agentic.concurrency import SLACK, result_within, start_detached, wait_shielded
from agentic.deregistration_budget import DeregistrationBudget
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
from agentic.incarnations import valid_incarnation
from agentic.logs import BackgroundLogs, FieldLogger
from agentic.options import count, function
from agentic.page import MAX_PAGE, Page, Position
from agentic.session import AgentSession
from agentic.text import type_name
from agentic.urls import StoreURL
from agentic.validation import valid_agent, valid_changes, valid_id, valid_text

T = TypeVar("T")

LONGEST_PAUSE: Final = 5.0
"""The most seconds between two attempts to open a registry whose store is unavailable."""

MAX_DIRECT_STARTS: Final = 100_000
"""How many agents a registry remembers to have registered."""

ANY_START: Final = 0
"""The default incarnation. Heartbeats do not check it again; they check any other object, even an equal one."""

MAX_REASON: Final = 1024
MAX_BY: Final = 256
"""The longest texts of an order to drain an agent, in characters."""


class AgentRegistry:
    """A registry of live agents. It behaves the same for every store.

    Creating one does no I/O. `async with registry:` opens it and closes it. Without `async with`, open it with
    `await registry`, which returns it, and close it with `aclose`. Every call

    - checks its arguments before any I/O, and raises `InvalidAgentError` or `ConfigurationError` without any change;
    - is atomic for one agent: the store checks the precondition and writes in one step;
    - takes effect on one agent in the order in which this registry's calls on it were issued;
    - ends within `timeout` seconds, or within `timeout` for each page if it walks the fleet, and raises `BackendError`
      if the store fails or does not answer; an outage never looks like an empty result;
    - can be cancelled without affecting other callers; a cancelled or failed write may still have happened;
    - raises `RegistryClosedError` if the registry is not open.

    To add a store, register a subclass as an entry point in the group `agentic.backends`, under the scheme of its URLs.
    The arguments of its constructor are its options, including `ttl`, `timeout`, `stale_after` and `wait`. Override
    `options_in`, `scratch` and `is_shared` if the defaults do not fit.

    An agent is alive while it sends heartbeats, offline (but still listed) when `reap` has found it silent, and gone
    when it was neither registered nor sent a heartbeat for the registry's `ttl`. The store's clock decides, never the
    caller's.

    Attributes:
        ttl: Seconds after its last registration or heartbeat at which an agent is **gone**; None keeps it until it is
            deregistered. Make it longer than `stale_after`.
        timeout: Seconds a call may take.
        stale_after: Seconds of silence after which a reaper of this registry marks an agent **offline**, unless the
            reaper has its own `ttl`. Make it longer than the `interval` of sessions.
        wait: Seconds for which `open` retries while the store is unavailable.
        corrupt_records: How many corrupt records `list`, `scan`, `page`, `reap` and `flush` have skipped so far.
        direct_starts: The incarnations that direct calls of `register` have got, by id: another such call replaces them
            without a warning. Those of sessions are not among them.
    """

    is_shared: ClassVar[bool] = True
    """Whether other processes can see the agents of this kind of registry."""

    _logger: ClassVar[logging.Logger] = logging.getLogger("agentic.registry")

    def __init__(
        self, backend: Backend, *, stale_after: float | timedelta = 30.0, wait: float | timedelta = 0.0
    ) -> None:
        """Use a store, and check the options that all registries have.

        Args:
            backend: The store, not shared with another registry.
            stale_after: Seconds of silence after which a reaper marks an agent offline, by default.
            wait: Seconds for which opening retries while the store is unavailable.

        Raises:
            ConfigurationError: `backend` is not a `Backend`, `stale_after` is not a finite number of seconds greater
                than 0, or `wait` is negative or not finite.
        """
        if not isinstance(backend, Backend):
            raise ConfigurationError(f"backend: must be a Backend, got {type_name(backend)}")
        self.backend = backend
        self._listen_to_backend()
        self.ttl = backend.ttl
        self.timeout = backend.timeout
        self.stale_after = positive_seconds(stale_after, "stale_after")
        self.wait = duration(wait, "wait").total_seconds()
        self.corrupt_records = 0
        self.direct_starts: dict[str, int] = {}
        self._affinity: Affinity | None = None
        """The process and event loop in which this registry is open, opening or closing."""
        self._open_dispatcher: Dispatcher | None = None
        self._beat_threads: list[BeatThread] = []
        self._background_logs: BackgroundLogs | None = None
        # A call that times out ends slightly after `timeout`.
        self.deregistration_budget = DeregistrationBudget(1.1 * self.timeout)

    @classmethod
    def options_in(cls, url: StoreURL) -> dict[str, Any]:
        """Return the constructor arguments that `open_registry` takes from a URL, apart from its query.

        They override the fields of a configuration, and keywords override them. By default, the only argument is
        `url`, the URL without its query.

        Raises:
            ConfigurationError: The URL has a part that this store does not support; the message shows no part of it.
        """
        return {"url": url.without_parameters()}

    @classmethod
    def scratch(cls, **options: Any) -> AbstractContextManager[Self]:
        """Create a registry for the demo in the store that `options` name, separate from the agents there; not open.

        Leaving the context deletes what remains besides the agents, such as a temporary file.

        Args:
            **options: Arguments of the class.

        Raises:
            ConfigurationError: The store does not support this, as by default.
        """
        raise ConfigurationError(f"{cls.__name__} has no scratch registry, which the demo needs: name another store")

    @property
    def store(self) -> str:
        """The name of the store in messages and logs: a URL without secrets."""
        return self.backend.store

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store!r}, ttl={self.ttl})"

    # --- lifecycle ---

    async def open(self) -> None:
        """Connect, and verify that the store answers. Use it if `async with` is not possible.

        Each attempt takes at most `timeout`. While the store is unavailable, retry for `wait` seconds, with growing
        pauses.

        Raises:
            BackendError: The store cannot be reached or used, or did not answer in time; nothing stays open.
            RegistryOpenError: The registry is already open, or still closing.
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
                if failure is None:  # Otherwise the previous attempt is still closing.
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
            # Later than the store's own timeout, because its error is more specific.
            await result_within(connecting, self.timeout * (1 + SLACK))
            self._open_dispatcher = Dispatcher(self.backend, affinity)
            # Not __del__: Python does not call it for every object that is left when the process exits.
            self._unclosed = weakref.finalize(self, _warn_unclosed, repr(self))
            self._unclosed.atexit = (
                self._background_logs is None
            )  # Of two registries, the first one warns at the exit of the process.
        except BaseException:
            await wait_shielded(self._end(self._abandon(connecting)), self.timeout)
            raise

    async def aclose(self) -> None:
        """Close what `open` opened, even if cancelled. Does nothing if the registry is not open.

        Calls already issued, including walks of the fleet, have `timeout` to finish; the rest fail with
        `RegistryClosedError`. If the event loop of `open` has ended, connections are dropped without being closed.

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
        """Drop what was opened in an event loop or process that no longer exists."""
        if self._open_dispatcher is not None:
            self._unclosed.detach()
        self._open_dispatcher = self._affinity = None
        self._beat_threads = []

    def _end(self, closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start closing. The registry can be opened again when this has ended, however long the store takes."""
        task = start_detached(closing)

        def closed(_: object) -> None:
            self._affinity = None

        task.add_done_callback(closed)
        return task

    async def _abandon(self, connecting: asyncio.Task[None]) -> None:
        """Wait for a failed or cancelled `Backend.open` to end, then close what it has left open."""
        try:
            try:
                await asyncio.wait([connecting])
            finally:
                await self.backend.close()
        except Exception as error:  # noqa: BLE001  the caller of `open` gets the first error
            self._log.warning("failed to close the store after a failed open: %s", error)

    async def _close(self, dispatcher: Dispatcher) -> None:
        # A program may cancel every task, and thereby interrupt this. The second call then closes the rest.
        with suppress(asyncio.CancelledError):
            stopping = [each.stop() for each in self._beat_threads]
            await asyncio.gather(dispatcher.close(), *stopping)
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
        """Open the registry and return it: `registry = await open_registry(...)`. Close it with `aclose`."""
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to copy or pickle an open registry: its connections and pending calls cannot be copied."""
        if self._affinity is not None:
            raise TypeError("an open registry cannot be copied or pickled")
        return self._state(copy(self.backend))

    def _state(self, backend: Backend) -> dict[str, Any]:
        """Return the state of a registry like this one on another backend; not open."""
        state = vars(self) | {"backend": backend, "deregistration_budget": DeregistrationBudget(1.1 * self.timeout)}
        state.pop("_unclosed", None)
        return state | {"_affinity": None, "_open_dispatcher": None, "_beat_threads": [], "_background_logs": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._listen_to_backend()

    def second(self, logs: BackgroundLogs) -> AgentRegistry:
        """Return a second registry for the same store, to be opened in the event loop of another thread; not open.

        Args:
            logs: Where it logs.

        Raises:
            ConfigurationError: The store does not support this.
        """
        second = type(self).__new__(type(self))
        second.__setstate__(self._state(self.backend.second()) | {"wait": 0.0, "_background_logs": logs})
        return second

    def beat_thread(self) -> BeatThread:
        """Return the thread that sends the heartbeats of sessions with `thread=True`; this registry must be open.

        Raises:
            ConfigurationError: The store does not support a second connection in a thread.
        """
        self._beat_threads = [each for each in self._beat_threads if not each.has_ended]
        if not self._beat_threads or self._beat_threads[-1].is_ending:
            logs = BackgroundLogs()
            self._beat_threads.append(BeatThread(self.second(logs), logs, self._log))
        return self._beat_threads[-1]

    # --- one agent ---

    async def register(self, agent: AgentInfo, *, incarnation: int = 0) -> AgentInfo:
        """Add an agent, or replace the one with its id, and restart its `ttl`.

        If `last_heartbeat` is None or later than the store's current time, the current time is stored. The
        `incarnation` of the agent is ignored.

        Args:
            agent: The agent.
            incarnation: The start of the agent that registers again, as an earlier registration returned it. 0 for a
                new start: it gets a higher incarnation than all before, and replaces whatever is stored. Logs a warning
                if the replaced start sent a heartbeat within `stale_after`, unless a direct call of this registry
                object had registered it.

        Returns:
            The agent as stored, with its incarnation.

        Raises:
            AgentReplacedError: A later start of the agent is stored; nothing was changed.
            InvalidAgentError: A field or the incarnation is invalid; the message names it.
            BackendError: The store failed; the agent may still have been registered.
        """
        agent = valid_agent(agent)
        if incarnation := valid_incarnation(incarnation):
            agent = replace(agent, incarnation=incarnation)
        registered = _unwrap(await self._dispatcher.insert(agent.id, agent), agent.id)
        if registered.silence is not None and self.direct_starts.get(agent.id) != registered.replaced:
            self._warn_if_alive(agent.id, registered.silence.total_seconds())
        self._remember_start(agent.id, registered.agent.incarnation)
        return registered.agent

    async def heartbeat(self, agent_id: str, *, incarnation: int = ANY_START) -> Beat:
        """Set an agent's `last_heartbeat` to the store's current time and restart its `ttl`.

        An agent that `reap` marked offline regains its previous status; an agent whose owner set `OFFLINE` becomes
        available. Nothing else changes, and no agent is created.

        Args:
            agent_id: The agent.
            incarnation: The start of the agent that sends the heartbeat, as `register` returned it; 0 for any.

        Returns:
            What the heartbeat found.

        Raises:
            AgentNotFoundError: The agent was never registered, was deregistered, or is gone after its `ttl`; or what is
                stored belongs to an earlier start of it.
            AgentReplacedError: A later start of the agent is stored; nothing was changed.
            InvalidAgentError: The id or the incarnation is invalid.
            BackendError: The store failed; the heartbeat may still have been stored.
        """
        agent_id = valid_id(agent_id)
        if incarnation is not ANY_START:
            incarnation = valid_incarnation(incarnation)
        found = await self._dispatcher.touch(agent_id, (agent_id, incarnation))
        if found is USUAL_BEAT:
            return USUAL_BEAT  # Hot path.
        return _unwrap(found, agent_id)

    async def heartbeat_many(self, ids: Iterable[str]) -> set[str]:
        """Send the heartbeats of many agents, whatever start of each is stored, in as few round trips as possible.

        Atomic for each agent, not for all together.

        Returns:
            The ids of agents that do not exist.

        Raises:
            InvalidAgentError: One of the ids is invalid; no heartbeat was stored.
            BackendError: The store failed, or one agent's record is corrupt; other heartbeats may have been stored.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise InvalidAgentError("ids", f"ids: must be an iterable of ids, got {type_name(ids)}")
        unique = list(dict.fromkeys(valid_id(agent_id) for agent_id in ids))
        touch = self._dispatcher.touch
        outcomes = await asyncio.gather(*(touch(agent_id, (agent_id, 0)) for agent_id in unique))
        for each in outcomes:
            if isinstance(each, RegistryError):
                raise copy_error(each)
        return {agent_id for agent_id, found in zip(unique, outcomes, strict=True) if found is None}

    async def get(self, agent_id: str) -> AgentInfo:
        """Return an agent.

        Raises:
            AgentNotFoundError: The agent does not exist.
            InvalidAgentError: The id is invalid.
            BackendError: The store failed, or the stored record is corrupt.
        """
        agent_id = valid_id(agent_id)
        found = await self._dispatcher.fetch(agent_id, agent_id)
        return _unwrap(found, agent_id)

    async def update(self, agent_id: str, *, incarnation: int = 0, **changes: Unpack[AgentChanges]) -> AgentInfo:
        """Change the named fields of an agent in one atomic step, and no others.

        This does not count as a heartbeat and does not restart the `ttl`. Fields: `status`, `current_load`, `name`,
        `capabilities`, `max_load`, `metadata` (replaced as a whole), `unready`.

        Args:
            agent_id: The agent.
            incarnation: The start of the agent that makes the change, as `register` returned it; 0 for any. It is
                stored as well if the record has lost its own.
            **changes: The new values.

        Returns:
            The agent after the change.

        Raises:
            AgentNotFoundError: The agent does not exist, or what is stored belongs to an earlier start of it.
            AgentReplacedError: A later start of the agent is stored; nothing was changed.
            InvalidAgentError: A value is invalid, or the record would be too long.
            TypeError: A name is not one of the fields above.
            BackendError: The store failed; the change may still have been made.
        """
        agent_id, incarnation = valid_id(agent_id), valid_incarnation(incarnation)
        checked = valid_changes(changes)
        if not checked:
            return await self.get(agent_id)
        changed = await self._dispatcher.patch(agent_id, (agent_id, checked, incarnation))
        return _unwrap(changed, agent_id)

    async def deregister(self, agent_id: str, *, incarnation: int = 0) -> None:
        """Remove an agent. Only `register` adds it again.

        Args:
            agent_id: The agent.
            incarnation: The start of the agent that leaves, as `register` returned it; 0 for any.

        Raises:
            AgentNotFoundError: The agent does not exist, or what is stored belongs to an earlier start of it.
            AgentReplacedError: A later start of the agent is stored; nothing was changed.
            InvalidAgentError: The id or the incarnation is invalid.
            BackendError: The store failed; the agent may still have been removed.
        """
        agent_id = valid_id(agent_id)
        removed = await self._dispatcher.delete(agent_id, (agent_id, valid_incarnation(incarnation)))
        _unwrap(removed, agent_id)

    async def drain(
        self, agent_id: str, *, reason: str, by: str = "", duration: float | timedelta | None = None
    ) -> Drain:
        """Order that an agent gets no new work, for maintenance or before it is replaced. This is an operator's call.

        The order is kept by id, apart from the agent's record, and also for an agent that does not exist. It survives
        heartbeats, updates, registrations, expiry and restarts of the agent, and ends with `resume`, or when `duration`
        has passed by the store's clock. A second order replaces the first. `flush` removes it, and it is lost if the
        store loses its data. `AgentInfo.draining` shows it, and the agent's session sees it at its next heartbeat. Work
        in progress is not affected.

        Args:
            agent_id: The agent.
            reason: Why; 1 to 1,024 characters.
            by: Who orders it; at most 256 characters.
            duration: Seconds after which it ends by itself; None for never.

        Returns:
            The order as stored.

        Raises:
            InvalidAgentError: The id, the reason or `by` is invalid.
            ConfigurationError: The duration is invalid.
            BackendError: The store failed; the order may still have been stored.
        """
        agent_id = valid_id(agent_id)
        reason, by = valid_text("reason", reason, MAX_REASON), valid_text("by", by, MAX_BY)
        if not reason:
            raise InvalidAgentError("reason", "reason: must not be empty")
        seconds = None if duration is None else positive_seconds(duration, "duration")
        drain = await self._dispatcher.set_drains(agent_id, (agent_id, DrainOrder(reason, by, seconds)))
        return cast("Drain", _unwrap(drain, agent_id))

    async def resume(self, agent_id: str) -> bool:
        """End the order to drain an agent.

        Returns:
            Whether there was one.

        Raises:
            InvalidAgentError: The id is invalid.
            BackendError: The store failed; the order may still have been ended.
        """
        agent_id = valid_id(agent_id)
        ended = await self._dispatcher.set_drains(agent_id, (agent_id, None))
        if isinstance(ended, RegistryError):
            raise copy_error(ended)
        return ended is True

    async def drains(self) -> dict[str, Drain]:
        """Return all orders to drain agents, by id, those for agents that do not exist included.

        Raises:
            BackendError: The store failed.
        """
        return await self._dispatcher.bounded(self.backend.drains)

    def session(
        self, agent: AgentInfo, *, interval: float | timedelta | None = None, thread: bool = False
    ) -> AgentSession:
        """Return a session, which keeps an agent registered and alive. Use `async with`, or `open` and `aclose`.

        Args:
            agent: Registered on entry, deregistered on exit.
            interval: Seconds between heartbeats. The default is 10, a third of `stale_after` or a third of `ttl`,
                whichever is shortest. An interval above a third of `stale_after` is logged as a warning.
            thread: Send the heartbeats from a thread with its own connections to the store, so that the agent stays
                alive while code blocks the event loop. While that lasts longer than `interval`, the agent is shown as
                unready. Code that never releases the interpreter's lock blocks the thread too.

        Raises:
            ConfigurationError: `interval` is not a finite number of seconds greater than 0, or not shorter than `ttl`.
                Or `thread` is True and the store is in memory, or a Redis client that was passed in as `client`.
        """
        return AgentSession(self, agent, interval=interval, thread=thread)

    # --- the whole fleet ---

    async def list(self) -> builtins.list[AgentInfo]:
        """Return every agent once, in no particular order. Corrupt records are skipped and logged.

        An agent that is registered or removed in the meantime may or may not be included; every other one is.

        Raises:
            BackendError: The store failed; the list is never shortened instead.
        """
        agents: builtins.list[AgentInfo] = []
        with self._dispatcher.walk(self.backend.scan) as pages:
            async for page in pages:
                agents += page
        return agents

    async def scan(self) -> AsyncGenerator[AgentInfo, None]:
        """Yield what `list` returns, page by page. Memory holds one page of agents, and the ids of all so far.

        Raises:
            BackendError: The store failed, perhaps after some agents were yielded.
        """
        with self._dispatcher.walk(self.backend.scan) as pages:
            async for page in pages:
                for agent in page:
                    yield agent

    async def page(self, cursor: str | None = None, limit: int = 500) -> Page:
        """Return one page of the fleet, ordered by id, and a cursor for the next page.

        Meant for consoles and HTTP clients. Start without a cursor, and pass each page's cursor to the next call until
        it is None. An agent that exists throughout is returned exactly once; one that is registered or removed in the
        meantime may or may not be. Corrupt records are skipped and logged.

        A cursor is a string of at most 700 characters that needs no escaping in URLs. It contains the id at which the
        page ended, unencrypted. It never expires, can be reused, and works in every process that has the same store
        open. Ids are ordered by their UTF-8.

        SQLite reads only the page; memory iterates over all ids. Redis has no order, so the first page of a walk reads
        the keys of the whole database, as does one page in every 20,000 agents after that. If the walk continues in
        another registry object, or after pages of eight other walks, so does the next page.

        Args:
            cursor: The cursor of the previous page; None starts a walk.
            limit: The most agents in the page, 1 to 10,000. Only the last page has fewer.

        Raises:
            ConfigurationError: `cursor` did not come from a page, or `limit` is out of range; there was no I/O.
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
        """Mark offline every agent whose last heartbeat is older than `ttl` by the store's clock.

        An agent whose last heartbeat is exactly `ttl` old is alive. Each agent is marked in one atomic step; a
        heartbeat that is stored first prevents the mark. Marking does not affect the agent's remaining time in the
        registry. If the call is cancelled, it finishes the current page, within `timeout`, before it raises.

        Args:
            ttl: How long an agent may be silent; not the registry's `ttl`, after which it is gone. Seconds or a
                `timedelta`; finite and not negative; `stale_after` by default.
            on_marked: Called in the event loop with the ids of each page that marked any, as soon as the store has
                acknowledged them, even if the call then ends with an error, a cancellation or `aclose`. Its
                exceptions end the call.

        Returns:
            The ids that this call marked. Only one call returns an agent each time it goes offline; it is returned
            again only after a heartbeat, a registration or an update has ended its offline status.

        Raises:
            ConfigurationError: An argument is invalid.
            BackendError: The store failed; `reaped` contains the ids marked before that.
            RegistryClosedError: The registry was closed; `reaped` contains the ids marked before that.
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
        """Return the store's current time, which decides whether agents are stale; in a cluster, of the first primary.

        Raises:
            BackendError: The store failed.
        """
        return (await self.store_times())[0]

    async def store_times(self) -> Sequence[datetime]:
        """Return the current time of each server of the store, in the same order while the servers are the same."""
        return await self._dispatcher.bounded(self.backend.times)

    async def diagnose(self) -> AsyncGenerator[Finding, None]:
        """Yield findings about the state of the store itself, not about its agents. Changes nothing.

        Each request to the store ends within `timeout`. Some stores have no findings.

        Raises:
            BackendError: The store failed, perhaps after some findings were yielded.
        """
        with self._dispatcher.walk(self.backend.diagnose) as pages:
            async for page in pages:
                for finding in page:
                    yield finding

    async def flush(self) -> int:
        """Delete every agent of this registry and all orders to drain agents, and nothing else in the store.

        Returns:
            How many there were.

        Raises:
            BackendError: The store failed; some agents may have been deleted.
        """
        deleted = 0
        with self._dispatcher.walk(self.backend.clear) as counts:
            async for deleted_in_page in counts:
                deleted += deleted_in_page
        return deleted

    # --- how calls reach the store ---

    def _listen_to_backend(self) -> None:
        """Count the corrupt records that the backend reports."""
        # Weakly: a strong reference is a cycle, and a registry that is dropped would wait for the garbage collector.
        listener = weakref.WeakMethod(self._count_corrupt)

        def report(error: CorruptRecordError) -> None:
            count_corrupt = listener()
            if count_corrupt is not None:
                count_corrupt(error)

        self.backend.on_corrupt = report

    def _remember_start(self, agent_id: str, incarnation: int) -> None:
        """Remember who registered an agent, so that registering it again here is no reason for a warning."""
        if len(self.direct_starts) >= MAX_DIRECT_STARTS:
            self.direct_starts.clear()
        self.direct_starts[agent_id] = incarnation

    def _warn_if_alive(self, agent_id: str, silence: float) -> None:
        """Log that a new start of an agent has replaced another one, unless that one was stale."""
        if silence <= self.stale_after:
            self._log.warning(
                "agent %r was started again while another start of it was alive, with a heartbeat %.1f s ago: that one "
                "is replaced",
                agent_id,
                max(0.0, silence),
                extra={"agent_id": agent_id},
            )

    def _count_corrupt(self, error: CorruptRecordError) -> None:
        self.corrupt_records += 1
        self._log.warning("skipped: %s", error, extra={"agent_id": error.agent_id})

    def check_open(self) -> None:
        """Check that the registry can be used here, without I/O.

        Raises:
            RegistryClosedError: The registry is not open, or was opened in another event loop or process.
        """
        _ = self._dispatcher

    @property
    def _log(self) -> FieldLogger:
        log = FieldLogger(self._logger, store=self.store)
        return log if self._background_logs is None else self._background_logs.log(log)

    @property
    def _dispatcher(self) -> Dispatcher:
        dispatcher = self._open_dispatcher
        if dispatcher is None:
            raise RegistryClosedError
        try:
            if asyncio.get_running_loop() is dispatcher.affinity.loop:
                return dispatcher  # Hot path, without another call.
        except RuntimeError:
            pass
        dispatcher.affinity.check()  # Raises.
        return dispatcher


def _warn_unclosed(registry: str) -> None:
    warnings.warn(f"unclosed {registry}: use 'async with', or await aclose()", ResourceWarning, stacklevel=2)


def _unwrap(outcome: T | RegistryError | None, agent_id: str) -> T:
    """Return the outcome of one agent, or raise its error."""
    if isinstance(outcome, RegistryError):
        raise copy_error(outcome)
    if not outcome:
        raise AgentNotFoundError(agent_id)
    return outcome

"""Run the calls of sessions in a thread, so that their heartbeats continue while their event loop is blocked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from agentic.concurrency import finish, mark_retrieved, start_detached
from agentic.errors import BackendError, RegistryClosedError
from agentic.logs import BackgroundLogs, FieldLogger
from agentic.presence import CHECKS_PER_INTERVAL, AgentCalls

T = TypeVar("T")

LEAVE_WAIT: Final = 0.25
"""Seconds for which the last session that leaves waits for the thread to end."""


class SecondRegistry(AgentCalls, Protocol):
    """A registry that the thread opens in its own event loop."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class BeatThread:
    """A thread with an event loop and a second registry. All sessions of one registry that want a thread share it.

    It runs from the first `enter` until each session that entered has left, or `stop`, or until the event loop of the
    sessions is closed. It does not keep the interpreter from exiting. It cannot be started again. Its public methods
    are called in the event loop of the sessions.

    Attributes:
        registry: The second registry, for calls in the thread.
        logs: Where calls in the thread log: a blocked event loop may hold the lock of a logging handler.
        blocked_for: Seconds for which the event loop of the sessions has been blocked; 0 if it runs.
        is_ending: Whether the thread has ended or is about to, so that no session may enter.
    """

    def __init__(self, registry: SecondRegistry, logs: BackgroundLogs, log: FieldLogger) -> None:
        """Create a thread that is not started."""
        self.registry = registry
        self.logs = logs
        self.blocked_for = 0.0
        self.is_ending = False
        self._log = logs.log(log)
        self._users = 0
        self._period = float("inf")
        """Seconds between two checks whether the event loop runs."""
        self._answered = threading.Event()
        self._stop_requested = False
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="agentic heartbeats", daemon=True)
        self._opened: Future[None] = Future()
        self._ended: Future[None] = Future()
        for future in (self._opened, self._ended):
            future.set_running_or_notify_cancel()  # So that nobody who waits for it can cancel it.

    @property
    def has_ended(self) -> bool:
        """Whether the thread has ended."""
        return self._ended.done()

    # --- in the event loop of the sessions ---

    async def enter(self, interval: float) -> None:
        """Start the thread and open its registry, unless another session has done so.

        Args:
            interval: Of the session's heartbeats.

        Raises:
            BackendError: The store cannot be reached or used.
            RegistryClosedError: Other code has cancelled the start.
        """
        self._users += 1
        self._period = min(self._period, interval / CHECKS_PER_INTERVAL)
        if self._starting is None:
            self._starting = start_detached(self._start())
            self._starting.add_done_callback(mark_retrieved)
        try:
            await asyncio.wait([self._starting])
            if self._starting.cancelled():
                raise RegistryClosedError
            self._starting.result()
            self._wake_thread()  # The period may be shorter now.
        except BaseException:
            await finish(self.leave(), self.registry.timeout)
            raise

    async def _start(self) -> None:
        self._main = asyncio.get_running_loop()
        try:
            self._thread.start()
        except RuntimeError:  # The process may not have more threads.
            self._ended.set_result(None)
            raise
        await asyncio.wrap_future(self._opened)

    def start(self, call: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Start a call in the thread; pass what this returns to `result`.

        Raises:
            RegistryClosedError: The thread has ended.
        """
        if self.is_ending:
            call.close()
            raise RegistryClosedError
        self._answered.set()  # The event loop runs.
        self.blocked_for = 0.0
        started = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))
        started.add_done_callback(mark_retrieved)
        return started

    @staticmethod
    async def result(started: asyncio.Future[T]) -> T:
        """Wait for a call. Cancelling this requests its cancellation in the thread, and does not wait for that.

        Raises:
            RegistryClosedError: The thread has ended.
        """
        try:
            await asyncio.wait([started])
        except asyncio.CancelledError:
            started.cancel()
            raise
        if started.cancelled():
            raise RegistryClosedError
        return started.result()

    async def leave(self) -> None:
        """End the thread if no session is left. If that takes longer than a moment, it ends in the background."""
        self._users -= 1
        if not self._users:
            await asyncio.wait([self._stop()], timeout=LEAVE_WAIT)

    async def stop(self) -> None:
        """End the thread, and wait for that. Calls in progress fail with `RegistryClosedError`."""
        await asyncio.wait([self._stop()])

    def _stop(self) -> asyncio.Task[None]:
        self.is_ending = True
        if self._stopping is None or self._stopping.cancelled():
            self._stopping = start_detached(self._end())
        return self._stopping

    async def _end(self) -> None:
        if self._starting is None:
            return
        await asyncio.wait([self._starting])
        self._stop_requested = True
        self._wake_thread()
        await asyncio.wrap_future(self._ended)

    def _wake_thread(self) -> None:
        if self._opened.done() and not self._opened.exception():
            with suppress(RuntimeError):  # Its event loop is closed.
                self._loop.call_soon_threadsafe(self._wake.set)

    # --- in the thread ---

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  raised by `enter`, or logged
            if not self._opened.done():
                self._opened.set_exception(error)
            elif isinstance(error, BackendError):
                self._log.warning("failed to close the store of the thread for heartbeats: %s", error)
            else:
                self._log.error("the thread for heartbeats has failed: %s", error, exc_info=error)
        finally:
            self.is_ending = True
            self.logs.close()
            self._ended.set_result(None)

    async def _serve(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        async with self.registry:
            self._opened.set_result(None)
            await self._watch()
            self.is_ending = True

    async def _watch(self) -> None:
        """Measure for how long the other event loop is blocked, until `stop` or until it is closed."""
        while not self._stop_requested:
            self._answered = answered = threading.Event()
            try:
                self._main.call_soon_threadsafe(answered.set)
            except RuntimeError:
                if self._users:
                    self._log.warning(
                        "the event loop was closed with open sessions (%d): they send no more heartbeats",
                        self._users,
                    )
                return
            await self._sleep()
            blocked = 0.0
            while not (answered.is_set() or self._stop_requested or self._main.is_closed()):
                blocked += await self._sleep()
                if not answered.is_set():
                    self.blocked_for = blocked
            self.blocked_for = 0.0

    async def _sleep(self) -> float:
        """Sleep for a period, or until woken. Return for how many seconds."""
        period, slept_at = self._period, monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(period):
                await self._wake.wait()
        self._wake.clear()
        # More than one period means that this thread did not run either, as in a process that was suspended.
        return min(monotonic() - slept_at, 2 * period)

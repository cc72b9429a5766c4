"""A background task that runs between `open` and `aclose`, which different tasks may call."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self, cast

import anyio

from agentic.concurrency import finish
from agentic.errors import RegistryClosedError, RegistryError, RegistryOpenError
from agentic.logs import FieldLogger


class Service(ABC):
    """Base class of sessions and reapers: a background task with a lifecycle.

    No task group or cancel scope stays open between `open` and `aclose`. So fixtures, startup and shutdown hooks, and
    notebooks may call them, or `__aenter__` and `__aexit__`, in different tasks. The background task runs in a copy of
    the context in which `open` was called.
    """

    def __init__(self, name: str, timeout: float, log: FieldLogger) -> None:
        """Set the name for messages and the logger.

        `_begin`, `_end`, and a cancelled `_serve` must each end within about `timeout`.
        """
        self._name = name
        self._timeout = timeout
        self._log = log
        self._opened = False
        self._lock = anyio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._body: _Body | None = None

    async def open(self) -> None:
        """Do what entering `async with` does, for programs that cannot use it.

        If the background task fails, the error is logged immediately and raised by `aclose`.

        Raises:
            RegistryOpenError: It is already open or still closing.
        """
        if self._opened:
            raise RegistryOpenError(f"{self._name} is open already, or not yet closed")
        self._opened = True
        try:
            async with self._lock:
                await self._begin()
                self._task = asyncio.create_task(self._serve())
                self._task.add_done_callback(self._ended)
        except BaseException:
            self._opened = False
            raise

    async def aclose(self) -> None:
        """Do what leaving `async with` does, even when cancelled. Does nothing if it is not open.

        May be called in another task than `open`. If `open` is in progress, `aclose` waits for it first.

        Raises:
            BaseException: The error that ended the background task early.
            RegistryClosedError: It was opened in another event loop.
        """
        error = await self._close()
        if error is not None:
            raise error

    async def __aenter__(self) -> Self:
        await self.open()
        self._body = _Body()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        cancelled_here = body is not None and body.uncancel(exc)
        error = await self._close()
        if error is None or (isinstance(exc, asyncio.CancelledError) and not cancelled_here):
            return
        if exc is not None and not cancelled_here:
            raise BaseExceptionGroup(f"{self._name} failed, and the body as well", [exc, error]) from None
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # Hides the cancellation of the body, which no outside code requested.

    @abstractmethod
    async def _begin(self) -> None:
        """Run before the background task starts. If it raises, it must clean up first."""

    @abstractmethod
    async def _serve(self) -> None:
        """Run in the background until cancelled."""

    @abstractmethod
    async def _end(self) -> None:
        """Run after the background task has ended for any reason."""

    async def _close(self) -> BaseException | None:
        """Close. Return the error that ended the background task early, if any."""
        task = self._task
        if task is not None and task.get_loop() is not asyncio.get_running_loop():
            if not task.get_loop().is_closed():
                raise RegistryClosedError(f"{self._name} was opened in another event loop: close it there")
            self._log.warning("%s was not closed before its event loop ended", self._name)
            self._task, self._opened = None, False
        return await finish(self._stop(), 3 * self._timeout)

    async def _stop(self) -> BaseException | None:
        async with self._lock:
            task, self._task = self._task, None
            if task is None:
                return None
            stopped = not task.done()
            try:
                while not task.done():
                    task.cancel()
                    await asyncio.wait([task], timeout=self._timeout)
            finally:
                await self._end()
                self._opened = False
            return self._failure(task, stopped)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is not self._task:
            return  # Stopped by `_stop`.
        self._log_failure(self._failure(task, stopped=False))
        if self._body is not None:
            self._body.cancel()

    def _log_failure(self, error: BaseException | None) -> None:
        # This library's errors need no traceback.
        self._log.error(
            "%s has failed: %s", self._name, error, exc_info=None if isinstance(error, RegistryError) else error
        )

    def _failure(self, task: asyncio.Task[None], stopped: bool) -> BaseException | None:
        """Return the error that ended the task; None if `_stop` cancelled it."""
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            if stopped:
                return None
            error = RegistryError(500, f"the background task of {self._name} was cancelled by other code")
            error.__cause__ = cancelled
        if error is None and not stopped:
            error = RegistryError(500, f"the background task of {self._name} returned")
        return error


class _Body:
    """The body of an `async with`, which can be cancelled while it runs in the task that entered."""

    def __init__(self) -> None:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = self._task.cancel()

    def uncancel(self, exc: BaseException | None) -> bool:
        """Undo `cancel`. Return whether it is the only cause of `exc`, as `asyncio.timeout` does."""
        if not self._cancelled or asyncio.current_task() is not self._task:
            return False
        return self._task.uncancel() <= self._cancelling and isinstance(exc, asyncio.CancelledError)

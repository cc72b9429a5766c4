"""A background task between `open` and `aclose`, in whichever tasks these are called."""

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
    """Base of what runs beside a program: a session, a reaper.

    Neither a task group nor a cancel scope is open between `open` and `aclose`, so fixtures, start and stop hooks and
    notebooks may call them, or `__aenter__` and `__aexit__`, in different tasks. The background task runs in a copy of
    the context in which `open` was called.
    """

    def __init__(self, name: str, timeout: float, log: FieldLogger) -> None:
        """Name it for messages, which go to `log`.

        What `_begin`, `_serve` when cancelled, and `_end` do ends within about `timeout`.
        """
        self._name = name
        self._timeout = timeout
        self._log = log
        self._opened = False
        self._changing = anyio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._body: _Body | None = None

    async def open(self) -> None:
        """Do what entering `async with` does, for programs that cannot use it.

        When the background task fails, the error is logged at once and raised by `aclose`.

        Raises:
            RegistryOpenError: It is open already, or not yet closed.
        """
        if self._opened:
            raise RegistryOpenError(f"{self._name} is open already, or not yet closed")
        self._opened = True
        try:
            async with self._changing:
                await self._begin()
                self._task = asyncio.create_task(self._serve())
                self._task.add_done_callback(self._ended)
        except BaseException:
            self._opened = False
            raise

    async def aclose(self) -> None:
        """Do what leaving `async with` does, also when cancelled; nothing when it is not open.

        May be called in another task than `open`, and while `open` is under way, which it waits for.

        Raises:
            BaseException: What ended the background task early.
            RegistryClosedError: It was opened in another event loop.
        """
        error = await self._leave()
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
        cancelled_here = body is not None and body.took_back_its_cancellation(exc)
        error = await self._leave()
        if error is None or (isinstance(exc, asyncio.CancelledError) and not cancelled_here):
            return
        if exc is not None and not cancelled_here:
            raise BaseExceptionGroup(f"{self._name} failed, and the body as well", [exc, error]) from None
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # Not the cancellation of the body, which nobody outside asked for.

    @abstractmethod
    async def _begin(self) -> None:
        """Do what comes before the background task; where it raises, leave nothing behind."""

    @abstractmethod
    async def _serve(self) -> None:
        """Run in the background until cancelled."""

    @abstractmethod
    async def _end(self) -> None:
        """Do what comes after the background task, whatever ended it."""

    async def _leave(self) -> BaseException | None:
        """Close; return what ended the background task early."""
        task = self._task
        if task is not None and task.get_loop() is not asyncio.get_running_loop():
            if not task.get_loop().is_closed():
                raise RegistryClosedError(f"{self._name} was opened in another event loop: close it there")
            self._log.warning("%s was not closed before its event loop ended", self._name)
            self._task, self._opened = None, False
        return await finish(self._close(), 3 * self._timeout)

    async def _close(self) -> BaseException | None:
        async with self._changing:
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
            return  # `_close` has stopped it.
        self._log_failure(self._failure(task, stopped=False))
        if self._body is not None:
            self._body.cancel()

    def _log_failure(self, error: BaseException | None) -> None:
        # An error of this library says all in its message.
        self._log.error(
            "%s has failed: %s", self._name, error, exc_info=None if isinstance(error, RegistryError) else error
        )

    def _failure(self, task: asyncio.Task[None], stopped: bool) -> BaseException | None:
        """Return what ended the task, unless `_close` did."""
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
    """The body of an `async with`, as long as it runs in the task that entered it."""

    def __init__(self) -> None:
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = self._task.cancel()

    def took_back_its_cancellation(self, exc: BaseException | None) -> bool:
        """Undo `cancel`; tell whether `exc` is due to it alone, as `asyncio.timeout` does."""
        if not self._cancelled or asyncio.current_task() is not self._task:
            return False
        return self._task.uncancel() <= self._cancelling and isinstance(exc, asyncio.CancelledError)

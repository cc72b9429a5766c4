"""One exchange with a store: in a task and a context of its own, bounded whatever the store does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any, Final, TypeVar

import anyio

from agentic.errors import BackendError, BackendUnavailableError

T = TypeVar("T")

SLACK: Final = 1 / 20
"""Part of a timeout by which a call may end late: to look for calls that are overdue, and for their cancellation."""


def start_detached(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a task in an empty context: what is sent for many callers must not run in the context of one of them."""
    return Context().run(asyncio.get_running_loop().create_task, call)


async def outcome(task: asyncio.Task[T], seconds: float, *, finish: bool = False) -> T:
    """Return what an exchange returns or raises; cancel it when it lasts too long.

    An exchange that ignores its cancellation is left to itself after a twentieth of the time.

    Args:
        task: The exchange.
        seconds: How long it may take, from now on.
        finish: Let the exchange end, within that time, when the caller is cancelled; else it is cancelled at once.

    Raises:
        BackendUnavailableError: The exchange took too long, or its task was cancelled by somebody else.
        BackendError: The exchange raised what is no `Exception`, such as `KeyboardInterrupt`, which is the cause.
    """
    task.add_done_callback(retrieve)
    end = monotonic() + seconds
    try:
        await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        with suppress(asyncio.CancelledError):
            await ended(task, end - monotonic() if finish else 0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await ended(task, seconds * SLACK)
        raise
    late = not task.done()
    if late:
        task.cancel()
        await asyncio.wait([task], timeout=seconds * SLACK)
    if not task.done() or (late and (task.cancelled() or task.exception() is not None)):
        raise no_answer(seconds)
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is not None:
        raise as_exception(error)
    return task.result()


async def ended(task: asyncio.Future[Any], seconds: float) -> None:
    """Wait until a task has ended, at most so many seconds, also when the caller is cancelled meanwhile.

    Raises:
        CancelledError: The caller was cancelled; raised at the end.
    """
    end = monotonic() + seconds
    was_cancelled = False
    with anyio.CancelScope(shield=True):
        while not task.done() and (left := end - monotonic()) > 0:
            try:
                await asyncio.wait([task], timeout=left)
            except asyncio.CancelledError:
                was_cancelled = True
    if was_cancelled:
        raise asyncio.CancelledError


def retrieve(task: asyncio.Future[Any]) -> None:
    """Keep asyncio from reporting an exception of a task as never retrieved."""
    if not task.cancelled():
        task.exception()


def no_answer(seconds: float) -> BackendUnavailableError:
    """Return the error of a call that the store did not answer in time."""
    return BackendUnavailableError(f"the store did not answer within {seconds:g} s")


def as_exception(error: BaseException) -> Exception:
    """Return what a caller gets where a store raised `error`: the same, or an error of this library in its place.

    A call is cancelled by other code when a program cancels every task. It is interrupted by what is no `Exception`,
    such as `KeyboardInterrupt`, and by a `StopIteration`, which no future can hold.
    """
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    if isinstance(error, asyncio.CancelledError):
        return BackendUnavailableError("the call to the store was cancelled")
    interrupted = BackendError(f"the call to the store was interrupted by {type(error).__name__}")
    interrupted.__cause__ = error
    return interrupted

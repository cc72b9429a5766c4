"""One exchange with a store: in a task and a context of its own, bounded whatever the store does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import Any, Final, TypeVar

import anyio

from agentic.errors import BackendError, BackendUnavailableError

T = TypeVar("T")

SLACK: Final = 1 / 20
"""Part of a timeout that a cancelled exchange has to end. One that ignores its cancellation is then left to itself."""


async def outcome(task: asyncio.Task[T], seconds: float, *, finish: bool = False) -> T:
    """Return what an exchange returns or raises; cancel it when it lasts too long.

    Args:
        task: The exchange.
        seconds: How long it may take, from now on.
        finish: Let the exchange end, within that time, when the caller is cancelled; else it is cancelled at once.

    Raises:
        BackendUnavailableError: The exchange took too long, or its task was cancelled by somebody else.
        BackendError: The exchange raised what is no `Exception`, such as `KeyboardInterrupt`, which is the cause.
    """
    task.add_done_callback(_retrieve)
    end = monotonic() + seconds
    try:
        await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        if finish:
            await _wait_though_cancelled(task, end - monotonic())
        task.cancel()
        await _wait_though_cancelled(task, seconds * SLACK)
        raise
    late = not task.done()
    if late:
        task.cancel()
        await asyncio.wait([task], timeout=seconds * SLACK)
    if not task.done() or (late and (task.cancelled() or task.exception() is not None)):
        raise no_answer(seconds)
    if task.cancelled():
        raise BackendUnavailableError("the call to the store was cancelled")
    error = task.exception()
    if error is not None and not isinstance(error, Exception):
        raise interrupted(error)
    return task.result()


def no_answer(seconds: float) -> BackendUnavailableError:
    """Return the error of a call that the store did not answer in time."""
    return BackendUnavailableError(f"the store did not answer within {seconds:g} s")


def interrupted(cause: BaseException) -> BackendError:
    """Return the error of a call that ended with what is no `Exception`, such as `KeyboardInterrupt`."""
    error = BackendError(f"the call to the store was interrupted by {type(cause).__name__}")
    error.__cause__ = cause
    return error


async def _wait_though_cancelled(task: asyncio.Task[Any], seconds: float) -> None:
    """Wait until a task has ended, at most so many seconds, however often the caller is cancelled meanwhile."""
    end = monotonic() + seconds
    with anyio.CancelScope(shield=True):
        while not task.done() and (left := end - monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task], timeout=left)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from reporting an exception that nobody waits for any more."""
    if not task.cancelled():
        task.exception()

"""Run a call in its own task: with a time limit, in an empty context, or to its end despite a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context
from time import monotonic
from typing import Any, Final, TypeVar

import anyio

from agentic.errors import BackendError, BackendUnavailableError, RegistryError

T = TypeVar("T")

SLACK: Final = 1 / 20
"""The fraction of a timeout by which a call may end late, because finding and cancelling overdue calls takes time."""


def start_detached(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a task in an empty context, because a batch of many callers must not run in the context of one of them."""
    return Context().run(asyncio.get_running_loop().create_task, call)


async def result_within(task: asyncio.Task[T], seconds: float, *, finish: bool = False) -> T:
    """Await a task for at most `seconds`, then cancel it. Return its result or raise its error.

    A task that ignores its cancellation is abandoned after another twentieth of the time.

    Args:
        task: One call to the store.
        seconds: The time limit, from now.
        finish: Let the task finish within the time limit when the caller is cancelled, instead of cancelling it.

    Raises:
        BackendUnavailableError: The task timed out, or was cancelled by other code.
        BackendError: The task raised something that is not an `Exception`, such as `KeyboardInterrupt` (its cause).
    """
    task.add_done_callback(mark_retrieved)
    end = monotonic() + seconds
    try:
        await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        with suppress(asyncio.CancelledError):
            await wait_shielded(task, end - monotonic() if finish else 0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await wait_shielded(task, seconds * SLACK)
        raise
    late = not task.done()
    if late:
        task.cancel()
        await asyncio.wait([task], timeout=seconds * SLACK)
    if not task.done() or (late and (task.cancelled() or task.exception() is not None)):
        raise timeout_error(seconds)
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is not None:
        raise as_exception(error)
    return task.result()


async def finish(call: Coroutine[Any, Any, T], grace: float) -> T:
    """Await a call in its own task. When cancelled, wait for it for up to `grace` seconds before raising.

    Works with anyio's cancel scopes and with repeated `Task.cancel`. The result or error of the call after a
    cancellation is dropped.

    Raises:
        RegistryError: Other code cancelled the call's task, which must not look like a cancellation of the caller.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(mark_retrieved)
        with suppress(asyncio.CancelledError):
            await wait_shielded(task, grace)
        task.cancel()
        raise
    try:
        return task.result()
    except asyncio.CancelledError as cancelled:
        raise RegistryError(500, "a call of this library was cancelled by other code") from cancelled


async def wait_shielded(task: asyncio.Future[Any], seconds: float) -> None:
    """Wait for a task to end, for at most `seconds`. A cancellation of the caller does not interrupt the wait.

    Raises:
        CancelledError: The caller was cancelled; raised after the wait.
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


def mark_retrieved(task: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging that the exception of a task was never retrieved."""
    if not task.cancelled():
        task.exception()


def timeout_error(seconds: float) -> BackendUnavailableError:
    """Return the error for a call that timed out."""
    return BackendUnavailableError(f"the store did not answer within {seconds:g} s")


def as_exception(error: BaseException) -> Exception:
    """Return `error`, or an error of this library in place of one that callers must not get.

    Replaced are `CancelledError` (a program that cancels every task also cancels this call), other errors that are not
    an `Exception`, such as `KeyboardInterrupt`, and `StopIteration`, which futures do not accept.
    """
    if isinstance(error, Exception) and not isinstance(error, (StopIteration, StopAsyncIteration)):
        return error
    if isinstance(error, asyncio.CancelledError):
        return BackendUnavailableError("the call to the store was cancelled")
    interrupted = BackendError(f"the call to the store was interrupted by {type(error).__name__}")
    interrupted.__cause__ = error
    return interrupted

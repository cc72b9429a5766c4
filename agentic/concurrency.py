"""How tasks end: a call that may finish although its caller is cancelled, and pages fetched one ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from agentic.errors import RegistryError
from agentic.exchange import ended, retrieve

T = TypeVar("T")


async def finish(call: Coroutine[Any, Any, T], grace: float) -> T:
    """Await a call in a task of its own; when cancelled, let it run on for up to `grace` seconds, then raise that.

    Holds against anyio's cancel scopes and against `Task.cancel`, once or often. What the call returns or raises after
    a cancellation is dropped.

    Raises:
        RegistryError: Other code cancelled the call's task: that is no cancellation of the caller.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(retrieve)
        with suppress(asyncio.CancelledError):
            await ended(task, grace)
        task.cancel()
        raise
    try:
        return task.result()
    except asyncio.CancelledError as cancelled:
        raise RegistryError(500, "a call of this library was cancelled by other code") from cancelled


async def one_ahead(pages: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield the same pages, each next one fetched while the consumer works on the one before it.

    A page that fails after the consumer has left fails silently. Close it (`contextlib.aclosing`) where it may be left
    early: that ends what is under way.
    """
    following = _fetch(pages)
    try:
        while True:
            try:
                page = await following
            except StopAsyncIteration:
                return
            following = _fetch(pages)
            await asyncio.sleep(0)  # Lets it send its request before the consumer goes on.
            yield page
    finally:
        following.cancel()
        await asyncio.wait([following])
        await pages.aclose()


def _fetch(pages: AsyncGenerator[T, None]) -> asyncio.Future[T]:
    following = asyncio.ensure_future(anext(pages))
    following.add_done_callback(retrieve)
    return following

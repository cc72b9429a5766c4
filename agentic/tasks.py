"""How tasks end: one that runs beside a body, and a call that may finish although its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


@asynccontextmanager
async def background(task: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None, None]:
    """Run a task beside the body, and cancel it when the body ends.

    An exception of the body comes out as it is. One of the task cancels the body and comes out as it is. Only when both
    raise is there an `ExceptionGroup`.
    """
    alone: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        alone, *others = group.exceptions
        if others:
            raise
    if alone is not None:
        # Raised here, outside the handler, so that the group does not become its context.
        raise alone


async def finish(call: Coroutine[Any, Any, T], grace: float) -> T:
    """Await a call; when cancelled, let it run on for up to `grace` seconds before the cancellation is raised.

    Holds against anyio's cancel scopes and against `Task.cancel`, once or often. What the call returns or raises after
    a cancellation is dropped.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        with anyio.CancelScope(shield=True):
            while not task.done() and (left := end - loop.time()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task], timeout=left)
        if not task.cancel() and not task.cancelled():
            task.exception()  # Retrieved, so that asyncio does not report it as forgotten.
        raise
    return task.result()


async def one_ahead(pages: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield the same pages, each next one already under way while the consumer works on the one before it.

    Close it (`contextlib.aclosing`) where it may be left early: that ends what is under way.
    """
    following = asyncio.ensure_future(anext(pages))
    try:
        while True:
            try:
                page = await following
            except StopAsyncIteration:
                return
            following = asyncio.ensure_future(anext(pages))
            await asyncio.sleep(0)  # Lets it send its request before the consumer goes on.
            yield page
    finally:
        following.cancel()
        await asyncio.wait([following])
        await pages.aclose()

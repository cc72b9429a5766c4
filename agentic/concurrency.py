"""How tasks end: a call that may finish although its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
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

"""Waiting for a condition, in place of sleeping for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def wait_until(
    predicate: Callable[[], bool | Awaitable[bool]], description: str, *, within: float = 20.0
) -> None:
    """Call the predicate every 5 ms until it returns true.

    Args:
        predicate: A function, or a coroutine function.
        description: What is waited for, for the message.
        within: Seconds to wait at most.

    Raises:
        AssertionError: The predicate was not true within that time; the message has the description.
    """
    end = time.monotonic() + within
    while not await holds(predicate):
        if time.monotonic() > end:
            raise AssertionError(f"not true within {within:g} s: {description}")
        await asyncio.sleep(0.005)


async def holds(predicate: Callable[[], bool | Awaitable[bool]]) -> bool:
    """Return what a predicate returns, awaited where it must be."""
    answer = predicate()
    return await answer if inspect.isawaitable(answer) else bool(answer)

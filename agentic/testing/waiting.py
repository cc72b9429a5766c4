"""Wait for a condition instead of sleeping for a guessed time."""

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
        description: The condition, for the error message.
        within: Maximum wait in seconds.

    Raises:
        AssertionError: The predicate did not become true in time; the message contains the description.
    """
    end = time.monotonic() + within
    while not await is_true(predicate):
        if time.monotonic() > end:
            raise AssertionError(f"not true within {within:g} s: {description}")
        await asyncio.sleep(0.005)


async def is_true(predicate: Callable[[], bool | Awaitable[bool]]) -> bool:
    """Return the result of a predicate, awaited if necessary."""
    answer = predicate()
    return await answer if inspect.isawaitable(answer) else bool(answer)

"""Waiting for a condition, in place of sleeping for luck."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def wait_until(
    predicate: Callable[[], bool | Awaitable[bool]], description: str, *, within: float = 20.0
) -> None:
    """Poll until the predicate holds; fail with the description when it does not within so many seconds."""
    end = time.monotonic() + within
    while True:
        holds = predicate()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        if time.monotonic() > end:
            raise AssertionError(f"did not come true within {within:g} s: {description}")
        await asyncio.sleep(0.005)

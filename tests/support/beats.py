"""Time counted in heartbeats: what must be back "within two intervals", on a machine of any speed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from agentic.testing.waiting import holds

TICKS = 20
"""Parts of an interval."""


async def wait_intervals(
    predicate: Callable[[], bool | Awaitable[bool]],
    description: str,
    *,
    within: float,
    interval: float,
    call: float = 0.0,
) -> None:
    """Poll until the predicate holds; fail with the description once so many intervals have passed.

    They are counted by a task of this event loop, as the sessions' pauses are: while the loop is held, none passes.
    `call` is what a call that was on its way may take besides, in seconds.
    """
    left = math.ceil(TICKS * (within + call / interval))

    async def tick() -> None:
        nonlocal left
        while True:
            await asyncio.sleep(interval / TICKS)
            left -= 1

    ticking = asyncio.create_task(tick())
    try:
        while True:
            if await holds(predicate):
                return
            assert left > 0, f"did not come true within {within:g} intervals of {interval:g} s: {description}"
            await asyncio.sleep(0.005)
    finally:
        ticking.cancel()

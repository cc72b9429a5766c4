"""Waiting for agents, and for a number of heartbeat intervals on a machine of any speed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from agentic import AgentNotFoundError, AgentRegistry, BackendUnavailableError
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

    A task of this event loop counts them, as sessions do: while the loop is blocked, none passes.
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


def is_there(registry: AgentRegistry, agent_id: str = "a") -> Callable[[], Awaitable[bool]]:
    """Return a predicate: an agent is registered, and the store says so."""

    async def found() -> bool:
        try:
            await registry.get(agent_id)
        except (AgentNotFoundError, BackendUnavailableError):
            return False
        return True

    return found

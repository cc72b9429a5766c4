"""Wait for agents, and for heartbeat intervals, independent of the speed of the machine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from agentic import AgentNotFoundError, AgentRegistry, BackendUnavailableError
from agentic.testing.waiting import is_true

TICKS = 20
"""The number of ticks per interval."""


async def wait_intervals(
    predicate: Callable[[], bool | Awaitable[bool]],
    description: str,
    *,
    within: float,
    interval: float,
    call: float = 0.0,
) -> None:
    """Poll until the predicate is true; fail with the description after this many intervals.

    A task of this event loop counts them like sessions do: while the loop is blocked, none passes.
    `call` is the extra time in seconds for a call already in progress.
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
            if await is_true(predicate):
                return
            assert left > 0, f"did not come true within {within:g} intervals of {interval:g} s: {description}"
            await asyncio.sleep(0.005)
    finally:
        ticking.cancel()


async def is_registered(registry: AgentRegistry, agent_id: str = "a") -> bool:
    """Return whether the agent is registered; a store that fails raises its error."""
    try:
        await registry.get(agent_id)
    except AgentNotFoundError:
        return False
    return True


def is_there(registry: AgentRegistry, agent_id: str = "a") -> Callable[[], Awaitable[bool]]:
    """Return a predicate: the store answers and the agent is registered."""

    async def found() -> bool:
        try:
            return await is_registered(registry, agent_id)
        except BackendUnavailableError:
            return False

    return found

"""Measurements: concurrent callers, scans of the fleet, pauses of the event loop."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from agentic import AgentInfo
from benchmarks.peers import Contender
from benchmarks.samples import Sample

FILLING_TASKS: Final = 1000
LONG_AGO: Final = timedelta(days=1)
TICK: Final = 0.001


def fleet(size: int) -> list[AgentInfo]:
    """Return typical agents; one in a hundred has been silent for a day."""
    silent_since = datetime.now(UTC) - LONG_AGO
    agents = [
        AgentInfo(f"agent-{number:07}", name="a measured agent", capabilities=("search", "code"), max_load=4)
        for number in range(size)
    ]
    return [
        replace(agent, last_heartbeat=silent_since) if number % 100 == 0 else agent
        for number, agent in enumerate(agents)
    ]


async def fill(contender: Contender, agents: Sequence[AgentInfo]) -> None:
    """Register every agent."""
    left = iter(agents)

    async def work() -> None:
        for agent in left:
            await contender.register(agent)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(FILLING_TASKS, len(agents))):
            tasks.create_task(work())


async def calls(call: Callable[[Any], Awaitable[object]], items: Sequence[Any], callers: int, seconds: float) -> Sample:
    """Let each caller make calls one after another until the time is over, at least one each."""
    # Not a list: the garbage collector would traverse it and block the event loop.
    latencies = array("d")
    now, count = time.perf_counter, len(items)

    async def work(at: int, end: float) -> None:
        began = now()
        while True:
            await call(items[at % count])
            ended = now()
            latencies.append(ended - began)
            began, at = ended, at + callers
            if began > end:
                return

    # Starting the callers blocks the event loop, so measure pauses only after each has made a call.
    async with asyncio.TaskGroup() as group:
        began = now()
        for number in range(callers):
            group.create_task(work(number, began + seconds))
        while len(latencies) < callers:  # noqa: ASYNC110  an event would add a check to each call
            await asyncio.sleep(TICK)
        async with longest_pause() as pauses:
            await asyncio.sleep(max(0.0, began + seconds - now()))
    elapsed = now() - began
    in_order = sorted(latencies)
    p50, p99 = (1000 * in_order[int(share * (len(in_order) - 1))] for share in (0.50, 0.99))
    return Sample(len(latencies) / elapsed, p50, p99, max(pauses, default=None))


async def walk(call: Callable[[], Awaitable[Sequence[object]]], agents: int, expected: int) -> Sample:
    """Measure one call that scans the fleet, without the time to free its result.

    Raises:
        RuntimeError: The result has the wrong length, so the time means nothing.
    """
    async with longest_pause() as pauses:
        began = time.perf_counter()
        found = await call()
        elapsed = time.perf_counter() - began
    if len(found) != expected:
        raise RuntimeError(f"expected {expected} agents, got {len(found)}")
    return Sample(agents / elapsed, held=max(pauses, default=0.0))


@asynccontextmanager
async def longest_pause() -> AsyncGenerator[list[float], None]:
    """Run a ticker during the body; it appends each tick's delay in milliseconds to the list."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(1000 * (time.perf_counter() - began - TICK))

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    try:
        yield late
    finally:
        await asyncio.sleep(0)
        ticker.cancel()

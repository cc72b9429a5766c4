"""What is measured, and how: rates of individually awaited calls, and of agents in calls that walk the fleet."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, TypeVar

from agentic import AgentInfo
from benchmarks.peers import Contender

Item = TypeVar("Item")

CONCURRENCIES: Final = (1, 64, 1000)
FILLING_TASKS: Final = 64
LONG: Final = 3600.0

OURS: Final = "agentic"


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        call: Which call.
        tasks: How many tasks await one call each, one after the other.
        unit: What is counted in a second: calls, or agents where one call concerns the fleet.
    """

    call: str
    tasks: int
    unit: str


@dataclass
class Result:
    """The rates of one case on one store, one for each repeat, by contender; OURS is among them."""

    store: str
    case: Case
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def median_rate(self, contender: str) -> float:
        """Return the median over the repeats."""
        return median(self.rates[contender])

    def ratio(self, peer: str) -> float:
        """Return how many times the peer's rate is OURS: the median of the repeats' own ratios."""
        return median(ours / theirs for ours, theirs in zip(self.rates[OURS], self.rates[peer], strict=True))

    @property
    def peers(self) -> list[str]:
        """The contenders beside OURS."""
        return [name for name in self.rates if name != OURS]


CASES: Final = (
    *(Case(call, tasks, "calls") for call in ("register", "heartbeat", "get") for tasks in CONCURRENCIES),
    Case("list", 1, "agents"),
    Case("reap, none stale", 1, "agents"),
    # The last, since it leaves every agent offline.
    Case("reap, all stale", 1, "agents"),
)


class Fleet:
    """The agents that every contender holds, and the time that one measurement takes at least."""

    def __init__(self, size: int, seconds: float) -> None:
        self.seconds = seconds
        self.agents = [
            AgentInfo(f"agent-{number:06}", name="a measured agent", capabilities=("search", "code"), max_load=4)
            for number in range(size)
        ]

    async def fill(self, contender: Contender) -> None:
        """Register every agent anew."""
        left = iter(self.agents)

        async def work() -> None:
            for agent in left:
                await contender.register(agent)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(FILLING_TASKS):
                tasks.create_task(work())

    async def measure(self, contender: Contender, case: Case) -> float:
        """Return a rate in the case's unit.

        Raises:
            RuntimeError: An answer was wrong, so its time means nothing.
        """
        match case.call:
            case "register":
                return await self._rate(contender.register, self.agents, case.tasks)
            case "heartbeat":
                return await self._rate(contender.heartbeat, [agent.id for agent in self.agents], case.tasks)
            case "get":
                return await self._rate(contender.get, [agent.id for agent in self.agents], case.tasks)
            case "list":
                return await self._fleet_rate(contender.list, len(self.agents))
            case "reap, none stale":
                return await self._fleet_rate(lambda: contender.reap(LONG), 0)
            case "reap, all stale":
                return await self._fleet_rate(lambda: contender.reap(0.0), len(self.agents), once=True)
        raise ValueError(case.call)

    async def _rate(self, call: Callable[[Item], Awaitable[object]], items: Sequence[Item], tasks: int) -> float:
        """Let each task await one call after the other until the time is over; return the calls in a second."""
        done = 0
        began = time.perf_counter()
        end = began + self.seconds

        async def work(at: int) -> None:
            nonlocal done
            while time.perf_counter() < end:
                await call(items[at % len(items)])
                at += tasks
                done += 1

        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                group.create_task(work(number))
        return done / (time.perf_counter() - began)

    async def _fleet_rate(
        self, call: Callable[[], Awaitable[Sequence[object]]], expected: int, *, once: bool = False
    ) -> float:
        """Await calls until the time is over, or one; return the agents walked in a second."""
        done = 0
        began = time.perf_counter()
        while not done or (not once and time.perf_counter() < began + self.seconds):
            answer = await call()
            if len(answer) != expected:
                raise RuntimeError(f"expected {expected} agents, got {len(answer)}")
            done += len(self.agents)
        return done / (time.perf_counter() - began)


async def measure_store(
    store: str, contenders: Mapping[str, Contender], fleet: Fleet, repeats: int, tell: Callable[[str], None]
) -> list[Result]:
    """Measure every case on every contender, one beside the other, so that what slows the host slows them all.

    The order of the contenders is turned with each repeat.
    """
    results = [Result(store, case) for case in CASES]
    names = list(contenders)
    for repeat in range(repeats):
        for name in names:
            await fleet.fill(contenders[name])
        for result in results:
            tell(f"{store}, repeat {repeat + 1} of {repeats}: {result.case.call}, {result.case.tasks} tasks")
            for name in names:
                result.rates[name].append(await fleet.measure(contenders[name], result.case))
        names.reverse()
    return results

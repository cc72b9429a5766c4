"""The cases to measure on each store, and the programs to compare with."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis.asyncio as aioredis

from agentic import AgentRegistry, MemoryRegistry, RedisRegistry, SQLiteRegistry
from agentic.testing import RedisServer
from benchmarks.measure import LONG_AGO, calls, fill, fleet, walk
from benchmarks.peers import BareScript, BareSQLite, Contender, PlainRedis, PlainSQLite
from benchmarks.samples import OURS, Case, Result, Sample

STORES: Final = ("memory", "sqlite", "redis")
CALLERS: Final = (1, 64, 1_000, 10_000)
FLEETS: Final = (1_000, 10_000, 100_000, 1_000_000)
CALLED_FLEET: Final = 20_000
"""The size of the fleet for single calls, and for scans that the peers run as well."""
CALLS: Final = [(call, callers) for call in ("register", "heartbeat", "get") for callers in CALLERS]
SCATTERED: Final = "heartbeat, scattered"
"""Heartbeats of agents in random order; in the other cases, concurrent callers use adjacent records."""
FENCED: Final = "heartbeat, fenced"
"""Heartbeats that name the incarnation of their agent, as those of sessions do."""

Progress = Callable[[str], None]
Ceiling = Callable[[Sequence[str], float], Awaitable[Sample]]


@dataclass
class Plan:
    """The extent of the measurements.

    Attributes:
        agents: The largest fleet to scan.
        repeats: How many times to measure each case; at most twice for fleets over 100,000.
        seconds: How long to measure single calls.
    """

    agents: int
    repeats: int
    seconds: float


@dataclass
class Setup:
    """A store and the contenders to measure on it.

    Attributes:
        registry: The registry.
        peers: Plain programs that do the same work, by name.
        ceilings: Heartbeats by the driver without the registry, by name, with the numbers of callers to compare at.
        server: The version of the server; None without one.
        size: Returns the size of the store in bytes; None for a store in this process.
    """

    registry: AgentRegistry
    peers: dict[str, Contender]
    ceilings: dict[str, tuple[range, Ceiling]]
    server: str | None
    size: Callable[[], Awaitable[int]] | None


async def measure_store(
    store: str, plan: Plan, folder: Path, progress: Progress
) -> tuple[list[Result], dict[str, Any]]:
    """Measure one store with all contenders interleaved, so that a slow host slows them all alike."""
    async with _set_up(store, folder) as setup:
        facts: dict[str, Any] = {} if setup.server is None else {"server": setup.server}
        facts[f"bytes per agent, {store}"] = await _bytes_per_agent(setup, progress)
        # Scans before calls: the peers' keys in the same database would be scanned as well.
        walks = await _measure_walks(store, setup, plan, progress)
        results = await _measure_calls(store, setup, plan, progress) + walks
    return results, facts


async def _measure_calls(store: str, setup: Setup, plan: Plan, progress: Progress) -> list[Result]:
    contenders: dict[str, Contender] = {OURS: setup.registry, **setup.peers}
    agents = fleet(CALLED_FLEET)
    ids = [agent.id for agent in agents]
    scattered = random.Random(1).sample(ids, len(ids))
    for contender in contenders.values():
        await fill(contender, agents)
    further = [(SCATTERED, 1_000), *((FENCED, callers) for callers in CALLERS)]
    results = [Result(Case(store, call, "calls", callers)) for call, callers in (*CALLS, *further)]
    for repeat in range(plan.repeats):
        for result in results:
            case = result.case
            progress(f"{store}, {repeat + 1} of {plan.repeats}: {case.call}, {case.size:,} callers")
            if case.call == FENCED:
                result.add(OURS, await _fenced_heartbeats(setup.registry, case.size, plan.seconds))
                continue
            items = agents if case.call == "register" else scattered if case.call == SCATTERED else ids
            method = case.call.partition(",")[0]
            for name, contender in contenders.items():
                result.add(name, await calls(getattr(contender, method), items, case.size, plan.seconds))
            for name, (callers, ceiling) in setup.ceilings.items():
                if case.call == "heartbeat" and case.size in callers:
                    result.add(name, await ceiling(ids, plan.seconds))
        contenders = dict(reversed(contenders.items()))
    await setup.registry.flush()
    return results


async def _fenced_heartbeats(registry: AgentRegistry, callers: int, seconds: float) -> Sample:
    agents = sorted(await registry.list(), key=lambda agent: agent.id)  # The calls before have changed incarnations.
    return await calls(
        lambda agent: registry.heartbeat(agent.id, incarnation=agent.incarnation), agents, callers, seconds
    )


async def _measure_walks(store: str, setup: Setup, plan: Plan, progress: Progress) -> list[Result]:
    sizes = sorted({size for size in FLEETS if size <= plan.agents} | {min(plan.agents, CALLED_FLEET)})
    results: list[Result] = []
    for size in sizes:
        contenders: dict[str, Contender] = {OURS: setup.registry}
        if size == CALLED_FLEET:
            contenders |= setup.peers
        agents = fleet(size)
        walks = {call: Result(Case(store, call, "agents", size)) for call in _walks(setup.registry, size)}
        for repeat in range(plan.repeats if size <= 100_000 else min(plan.repeats, 2)):
            progress(f"{store}, {repeat + 1} of {plan.repeats}: walks of {size:,} agents")
            for name, contender in contenders.items():
                await fill(contender, agents)
                for call, (walker, expected) in _walks(contender, size).items():
                    walks[call].add(name, await walk(walker, size, expected))
        await setup.registry.flush()
        results += walks.values()
    for result in results:
        if OURS not in result.samples:
            raise RuntimeError(f"not measured: {result.case}")
    return results


def _walks(contender: Contender, size: int) -> dict[str, tuple[Callable[[], Awaitable[Sequence[object]]], int]]:
    """Return each scan with the expected number of agents; the last one leaves every agent offline."""

    async def scanned() -> Sequence[object]:
        return (
            [None async for _ in contender.scan()] if isinstance(contender, AgentRegistry) else await contender.list()
        )

    def reaped(ttl: float) -> Callable[[], Awaitable[Sequence[object]]]:
        return partial(contender.reap, ttl)

    day, silent = LONG_AGO.total_seconds(), -(-size // 100)
    return {
        "list": (contender.list, size),
        "scan": (scanned, size),
        "reap, none stale": (reaped(2 * day), 0),
        "reap, 1 % stale": (reaped(day / 2), silent),
        "reap, all stale": (reaped(0.0), size - silent),
    }


async def _bytes_per_agent(setup: Setup, progress: Progress) -> float:
    progress("bytes per agent")
    count = 100_000
    agents = fleet(count)
    size = setup.size
    if size is None:
        tracemalloc.start()

        async def size() -> int:
            return tracemalloc.get_traced_memory()[0]

    before = await size()
    await fill(setup.registry, agents)
    after = await size()
    if setup.size is None:
        tracemalloc.stop()
    await setup.registry.flush()
    return round((after - before) / count)


@asynccontextmanager
async def _set_up(store: str, folder: Path) -> AsyncGenerator[Setup, None]:
    async with AsyncExitStack() as stack:
        if store == "memory":
            yield Setup(await stack.enter_async_context(MemoryRegistry()), {}, {}, None, None)
        elif store == "sqlite":
            path = folder / "registry.db"
            registry = await stack.enter_async_context(SQLiteRegistry(path))
            peers: dict[str, Contender] = {
                f"one commit a call, {synchronous}": await stack.enter_async_context(
                    PlainSQLite.opened(folder / f"{synchronous}.db", synchronous)
                )
                for synchronous in ("NORMAL", "FULL")
            }
            bare = await stack.enter_async_context(BareSQLite.opened(path))

            async def file_size() -> int:
                return sum(Path(f"{path}{end}").stat().st_size for end in ("", "-wal"))  # noqa: ASYNC240

            ceilings: dict[str, tuple[range, Ceiling]] = {
                "bare sqlite3 group commit": (range(1_000, 10_001), bare.heartbeats)
            }
            yield Setup(registry, peers, ceilings, None, file_size)
        else:
            url = stack.enter_context(RedisServer()).url
            redis_registry = await stack.enter_async_context(RedisRegistry(url, prefix="bench", ttl=100_000))
            plain = await stack.enter_async_context(PlainRedis.opened(url))
            client = await stack.enter_async_context(aioredis.Redis.from_url(url))
            script = await BareScript.made(client, redis_registry)

            async def used_memory() -> int:
                info: dict[str, Any] = await client.info("memory")
                return int(info["used_memory"])

            ceilings = {
                "bare EVALSHA": (range(1, 2), lambda ids, seconds: calls(script.heartbeat, ids, 1, seconds)),
                "bare script, full batches": (range(1_000, 10_001), script.heartbeats),
            }
            yield Setup(redis_registry, {"GET and SET a call": plain}, ceilings, await _version(client), used_memory)


async def _version(client: aioredis.Redis) -> str:
    info: dict[str, Any] = await client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"

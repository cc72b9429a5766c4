"""A look at a store by somebody who has to run it: what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from statistics import median
from time import perf_counter
from typing import Final
from uuid import uuid4

from agentic.agent import AgentInfo, AgentStatus
from agentic.backends.redis import RedisRegistry
from agentic.backends.redis_doctor import redis_findings
from agentic.backends.sqlite import SQLiteRegistry
from agentic.backends.sqlite_doctor import sqlite_findings
from agentic.clock import system_clock
from agentic.errors import BackendError, BackendRejectedError
from agentic.findings import Finding, Level
from agentic.registry import AgentRegistry

SLOW: Final = 0.05
CLOCK_OFFSET: Final = 1.0
PROBES: Final = 5


async def examine(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    """Yield what is found of an open registry's store, the store's own facts first.

    Registers and removes one agent of its own, to see that the rights suffice; changes nothing else.

    Raises:
        BackendError: The store failed.
    """
    if isinstance(registry, RedisRegistry):
        async for finding in redis_findings(registry):
            yield finding
    elif isinstance(registry, SQLiteRegistry):
        async for finding in sqlite_findings(registry):
            yield finding
    yield await _latency(registry)
    yield await _clock(registry)
    yield await _rights(registry)
    async for finding in _fleet(registry):
        yield finding


async def _latency(registry: AgentRegistry) -> Finding:
    seconds = []
    for _ in range(PROBES):
        began = perf_counter()
        await registry.store_time()
        seconds.append(perf_counter() - began)
    middle = median(seconds)
    if middle > SLOW:
        return Finding(
            Level.NOTE, "latency", f"{middle * 1000:.1f} ms", "calls made together share this; put the store nearer"
        )
    return Finding(Level.OK, "latency", f"{middle * 1000:.2f} ms")


async def _clock(registry: AgentRegistry) -> Finding:
    before = system_clock()
    store = await registry.store_time()
    after = system_clock()
    offset = (store - (before + (after - before) / 2)).total_seconds()
    if abs(offset) > CLOCK_OFFSET:
        advice = (
            "the store's clock decides, so agents are right; synchronise the clocks before you compare times by hand"
        )
        return Finding(Level.NOTE, "clock offset to this host", f"{offset:+.3f} s", advice)
    return Finding(Level.OK, "clock offset to this host", f"{offset:+.3f} s")


async def _rights(registry: AgentRegistry) -> Finding:
    agent = AgentInfo(f"doctor-{uuid4().hex[:12]}")
    tried = "register"
    try:
        await registry.register(agent)
        tried = "heartbeat"
        await registry.heartbeat(agent.id)
        tried = "update"
        await registry.update(agent.id, status=AgentStatus.BUSY)
        tried = "deregister"
        await registry.deregister(agent.id)
    except BackendRejectedError as error:
        return Finding(Level.BAD, "rights", f"{tried} is refused", str(error))
    return Finding(Level.OK, "rights", "register, heartbeat, update and deregister work")


async def _fleet(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    before = registry.corrupt_records
    counts = dict.fromkeys(AgentStatus, 0)
    try:
        async for agent in registry.scan():
            counts[agent.status] += 1
    except BackendError as error:
        yield Finding(Level.BAD, "agents", "cannot be listed", str(error))
        return
    shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    yield Finding(Level.OK, "agents", f"{sum(counts.values())}{shown and f': {shown}'}")
    corrupt = registry.corrupt_records - before
    if corrupt:
        advice = "another program writes here; the log names each, deregister removes it"
        yield Finding(Level.BAD, "corrupt records", str(corrupt), advice)
    else:
        yield Finding(Level.OK, "corrupt records", "none")

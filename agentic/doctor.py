"""A look at a store by somebody who has to run it: what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from statistics import median
from time import perf_counter
from typing import Final
from uuid import uuid4

from msgspec.structs import replace

from agentic.agent import AgentInfo, AgentStatus
from agentic.clock import system_clock
from agentic.errors import AgentNotFoundError, BackendError, BackendRejectedError
from agentic.findings import Finding, Level
from agentic.registry import AgentRegistry

SLOW: Final = 0.05
CLOCK_OFFSET: Final = 1.0
PROBES: Final = 5


async def examine(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    """Yield what is found of an open registry's store, the store's own facts first.

    Registers and removes one agent of its own, to see that the rights suffice; changes nothing else. What the store
    refuses is a finding.

    Raises:
        BackendError: The store failed otherwise than by refusing a call.
    """
    async with aclosing(registry.diagnose()) as findings:
        async for finding in findings:
            yield finding
    for finding in (*await _time(registry), *await _rights(registry)):
        yield finding
    async for finding in _fleet(registry):
        yield finding


async def _time(registry: AgentRegistry) -> list[Finding]:
    try:
        return [await _latency(registry), await _clock(registry)]
    except BackendRejectedError as error:
        return [Finding(Level.BAD, "clock", "the store's time is refused", str(error))]


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


async def _rights(registry: AgentRegistry) -> list[Finding]:
    """Try each kind of call, for only the store knows what it refuses; one refused does not keep the next from it."""
    agent = AgentInfo(f"doctor-{uuid4().hex[:12]}")
    offline = replace(agent, status=AgentStatus.OFFLINE)
    refused = []

    async def attempt(what: str, call: Awaitable[object]) -> bool:
        try:
            await call
        except BackendRejectedError as error:
            refused.append(Finding(Level.BAD, "rights", f"{what} is refused", str(error)))
        except AgentNotFoundError:
            pass  # Its registration was refused, which was told.
        else:
            return True
        return False

    removal = "deregister"
    try:
        if await attempt("register", registry.register(agent)):
            removal = f"deregister of {agent.id!r}, which stays,"
        # Redis writes the heartbeats of an agent and of an offline one with different commands.
        await attempt("heartbeat", registry.heartbeat(agent.id))
        with suppress(BackendRejectedError):
            await registry.register(offline)
        await attempt("heartbeat of an offline agent", registry.heartbeat(agent.id))
        await attempt("update", registry.update(agent.id, status=AgentStatus.BUSY))
    finally:
        await attempt(removal, registry.deregister(agent.id))
    return refused or [Finding(Level.OK, "rights", "register, heartbeat, update and deregister work")]


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

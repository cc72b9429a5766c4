"""Examine a store for the person who operates it, and give advice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from statistics import median
from time import perf_counter
from typing import Final, TypeVar
from uuid import uuid4

import anyio
from msgspec.structs import replace

from agentic.agent import AgentInfo, AgentStatus
from agentic.clock import system_clock
from agentic.errors import AgentNotFoundError, BackendError, BackendRejectedError, BackendUnavailableError
from agentic.findings import READS_ONLY, Finding, Level
from agentic.registry import AgentRegistry

SLOW: Final = 0.05
CLOCK_OFFSET: Final = 1.0
PROBES: Final = 5

T = TypeVar("T")


async def examine(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    """Yield findings about the store of an open registry, starting with the store's own diagnosis.

    Registers and removes one temporary agent to check the permissions. Changes nothing else, and removes the agent even
    if cancelled. Calls that the store refuses, and steps that fail, become findings. Each step ends within the
    registry's `timeout`; counting the fleet ends within `timeout` for each page. After a step without an answer, the
    remaining steps are skipped unless the store answers again.
    """
    yield Finding(Level.OK, "store", registry.store)
    steps: list[tuple[str, Callable[[], AsyncGenerator[Finding, None]]]] = [
        ("state of the store", registry.diagnose),
        ("latency", lambda: _latency(registry)),
        ("clock", lambda: _clock(registry)),
        ("rights", lambda: _rights(registry)),
        ("agents", lambda: _fleet(registry)),
    ]
    answers, reads_only = True, False
    for subject, step in steps:
        if not answers:
            yield Finding(Level.NOTE, subject, "not examined, because the store did not answer")
            continue
        if reads_only and subject == "rights":
            yield Finding(Level.NOTE, subject, f"not examined, because the user {READS_ONLY}")
            continue
        try:
            async with aclosing(step()) as findings:
                async for finding in findings:
                    reads_only |= finding.found == READS_ONLY
                    yield finding
        except BackendError as error:
            yield Finding(Level.BAD, subject, f"could not be examined: {error}")
            answers = not isinstance(error, BackendUnavailableError) or await _answers(registry)


async def _answers(registry: AgentRegistry) -> bool:
    try:
        await registry.store_time()
    except BackendUnavailableError:
        return False
    except BackendError:
        pass
    return True


async def _in_time(registry: AgentRegistry, step: Awaitable[T]) -> T:
    try:
        with anyio.fail_after(registry.timeout):
            return await step
    except TimeoutError as error:
        raise BackendUnavailableError(f"the store did not answer within {registry.timeout:g} s") from error


async def _latency(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    async def measured() -> float:
        seconds = []
        for _ in range(PROBES):
            began = perf_counter()
            await registry.store_time()
            seconds.append(perf_counter() - began)
        return median(seconds)

    middle = await _in_time(registry, measured())
    if middle > SLOW:
        advice = "concurrent calls share this latency; move the store closer"
        yield Finding(Level.NOTE, "latency", f"{middle * 1000:.1f} ms", advice)
    else:
        yield Finding(Level.OK, "latency", f"{middle * 1000:.2f} ms")


async def _clock(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    before = system_clock()
    store = await registry.store_time()
    after = system_clock()
    offset = (store - (before + (after - before) / 2)).total_seconds()
    if abs(offset) > CLOCK_OFFSET:
        advice = (
            "the store's clock decides, so agents are right; synchronise the clocks before you compare times by hand"
        )
        yield Finding(Level.NOTE, "clock offset to this host", f"{offset:+.3f} s", advice)
    else:
        yield Finding(Level.OK, "clock offset to this host", f"{offset:+.3f} s")


async def _rights(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    refused = await _in_time(registry, _refused(registry))
    for finding in refused or [Finding(Level.OK, "rights", "register, heartbeat, update and deregister work")]:
        yield finding


async def _refused(registry: AgentRegistry) -> list[Finding]:
    """Try each kind of call, even after one is refused, because only the store knows which calls it permits."""
    agent = AgentInfo(f"doctor-{uuid4().hex[:12]}")
    offline = replace(agent, status=AgentStatus.OFFLINE)
    refused = []
    incarnation = 0

    async def register(agent: AgentInfo) -> None:
        nonlocal incarnation
        incarnation = (await registry.register(agent, incarnation=incarnation)).incarnation

    async def attempt(what: str, call: Awaitable[object]) -> bool:
        try:
            await call
        except BackendRejectedError as error:
            refused.append(Finding(Level.BAD, "rights", f"{what} is refused", str(error)))
            return False
        except AgentNotFoundError:
            pass  # Its registration was refused, which is already a finding.
        return True

    removal = f"deregister of {agent.id!r}, which may stay,"
    try:
        if not await attempt("register", register(agent)):
            removal = "deregister"
        # Redis writes the heartbeats of an agent and of an offline one with different commands.
        await attempt("heartbeat", registry.heartbeat(agent.id))
        with suppress(BackendRejectedError):
            await register(offline)
        await attempt("heartbeat of an offline agent", registry.heartbeat(agent.id))
        await attempt("update", registry.update(agent.id, status=AgentStatus.BUSY))
    finally:
        # Also after a failed registration, which may have taken effect.
        with anyio.CancelScope(shield=True):
            try:
                await attempt(removal, registry.deregister(agent.id))
            except BackendUnavailableError as error:
                if not await _is_absent(registry, agent.id):
                    raise BackendUnavailableError(
                        f"agent {agent.id!r} may stay, because its removal failed: {error}"
                    ) from error
    return refused


async def _is_absent(registry: AgentRegistry, agent_id: str) -> bool:
    with suppress(BackendError):
        try:
            await registry.get(agent_id)
        except AgentNotFoundError:
            return True
    return False


async def _fleet(registry: AgentRegistry) -> AsyncGenerator[Finding, None]:
    before = registry.corrupt_records
    counts = dict.fromkeys(AgentStatus, 0)
    async with aclosing(registry.scan()) as agents:
        async for agent in agents:
            counts[agent.status] += 1
    shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    yield Finding(Level.OK, "agents", f"{sum(counts.values())}{shown and f': {shown}'}")
    corrupt = registry.corrupt_records - before
    if corrupt:
        advice = "another program writes here; the log names each: deregister it, or delete it in the store"
        yield Finding(Level.BAD, "corrupt records", str(corrupt), advice)
    else:
        yield Finding(Level.OK, "corrupt records", "none")

"""The reaper's guards: agents that could not beat get their time, and a mass expiry is held back for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

import pytest

from agentic import AgentInfo, AgentStatus, ConfigurationError, MemoryRegistry, Reaper, RedisRegistry
from agentic.guard import Grace, Hold
from tests.redis_server import RedisServer
from tests.stores import LONG_AGO, Clock
from tests.waiting import wait_until

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_grace_finds_what_kept_agents_from_beating() -> None:
    grace = Grace(interval=10, deadline=300)
    assert grace.reason(0, 0, NOW) is None
    assert grace.reason(10, 10, after(10)) is None
    assert grace.reason(20, 10.1, after(20)) == "the reaper was held for 10 s"
    assert grace.reason(30, 0, after(40)) is None
    assert grace.reason(40, 0, after(3650)) == "the store's clock was stepped by +3600 s"
    assert grace.reason(50, 0, after(60)) == "the store's clock was stepped by -3600 s"
    grace.store_failed()
    assert grace.reason(60, 0, after(70)) == "the store had failed"
    assert grace.reason(70, 0, after(80)) is None


def test_grace_lasts_an_interval_and_never_longer_than_its_deadline() -> None:
    grace = Grace(interval=10, deadline=25)
    assert grace.left(0) == 0
    grace.begin(0)
    assert grace.left(4) == 6
    for now in (9, 18):
        grace.begin(now)
    assert grace.left(18) == 7
    assert grace.left(25) == 0
    grace.begin(30)
    assert grace.left(30) == 10


def test_a_hold_lasts_until_its_deadline_or_until_the_fleet_is_well() -> None:
    hold = Hold(max_fraction=0.5, deadline=30)
    assert not hold.holds(0, stale=5, live=10)
    assert hold.holds(10, stale=6, live=10)
    assert hold.holding
    assert hold.holds(39, stale=10, live=10)
    assert not hold.holds(40, stale=10, live=10)
    assert not hold.holds(41, stale=10, live=10), "a sweep that failed is tried again at once"
    hold.swept()
    assert hold.holds(42, stale=6, live=10)
    assert not hold.holds(43, stale=0, live=10)
    assert not hold.holding


async def test_a_held_loop_costs_no_living_agent_its_life() -> None:
    reaped: list[str] = []
    async with (
        MemoryRegistry() as registry,
        registry.session(AgentInfo("alive"), interval=0.1),
        Reaper(registry, ttl=0.4, interval=0.1, on_reaped=reaped.extend),
    ):
        await registry.register(AgentInfo("silent"))
        for _ in range(3):
            time.sleep(0.6)  # noqa: ASYNC251  the fault itself
            await asyncio.sleep(0.02)
        await wait_until(lambda: reaped == ["silent"], "the agent that is silent is marked all the same")
        assert (await registry.get("alive")).status is AgentStatus.AVAILABLE


async def test_an_outage_costs_no_living_agent_its_life(own_redis_server: RedisServer) -> None:
    reaped: list[str] = []
    async with (
        RedisRegistry(own_redis_server.url, timeout=0.2) as registry,
        registry.session(AgentInfo("alive"), interval=0.2) as session,
        Reaper(registry, ttl=1, interval=0.4, on_reaped=reaped.extend),
    ):
        await registry.register(AgentInfo("silent"))
        own_redis_server.pause()
        await asyncio.sleep(1.5)
        own_redis_server.resume()
        await wait_until(lambda: reaped == ["silent"], "the agent that is silent is marked all the same")
        assert session.healthy
        assert (await registry.get("alive")).status is AgentStatus.AVAILABLE


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_step_of_the_stores_clock_costs_no_living_agent_its_life(
    step: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "agentic")
    clock = Clock()
    reaped: list[str] = []
    async with (
        MemoryRegistry(clock=clock) as registry,
        registry.session(AgentInfo("alive"), interval=0.1),
        Reaper(registry, ttl=1, interval=0.3, on_reaped=reaped.extend),
    ):
        await asyncio.sleep(0.4)
        clock.advance(step)
        await wait_until(lambda: "clock was stepped" in caplog.text, "the step is told")
        await asyncio.sleep(0.8)
        assert reaped == []


async def test_a_mass_expiry_is_held_back_told_and_goes_ahead(caplog: pytest.LogCaptureFixture) -> None:
    held: list[tuple[int, int]] = []
    reaped: list[str] = []
    async with MemoryRegistry() as registry:
        for number in range(10):
            await registry.register(AgentInfo(f"agent-{number}", last_heartbeat=LONG_AGO if number < 6 else None))
        reaper = Reaper(
            registry,
            ttl=60,
            interval=0.02,
            on_reaped=reaped.extend,
            max_fraction=0.5,
            guard_deadline=0.5,
            on_held=lambda stale, live: held.append((stale, live)),
        )
        async with reaper:
            await wait_until(lambda: bool(held), "the sweep is held back")
            assert reaped == []
            await wait_until(lambda: bool(reaped), "it goes ahead after the deadline")
    assert held == [(6, 10)]
    assert sorted(reaped) == [f"agent-{number}" for number in range(6)]
    assert caplog.text.count("sweeps are held back: 6 of 10 live agents are stale") == 1


async def test_a_small_expiry_is_not_held_back() -> None:
    reaped: list[str] = []
    async with MemoryRegistry() as registry:
        for number in range(10):
            await registry.register(AgentInfo(f"agent-{number}", last_heartbeat=LONG_AGO if number < 5 else None))
        async with Reaper(registry, ttl=60, interval=0.02, on_reaped=reaped.extend, max_fraction=0.5):
            await wait_until(lambda: len(reaped) == 5, "half of the fleet is marked at once")


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan"), True, "half"])
def test_a_wrong_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="^max_fraction: "):
        Reaper(MemoryRegistry(), max_fraction=fraction)

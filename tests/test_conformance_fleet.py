"""The contract of AgentRegistry for the whole fleet, list, scan, reap and flush, on every store."""

from __future__ import annotations

import asyncio
import gc
import math
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest

from agentic import (
    AgentInfo,
    AgentRegistry,
    AgentStatus,
    ConfigurationError,
    MemoryRegistry,
    RegistryClosedError,
    RegistryError,
)
from tests.support.stores import LONG_AGO, Store

NOW = datetime(2026, 11, 23, 8, 0, 0, tzinfo=UTC)


async def fill(registry: AgentRegistry, count: int, **fields: object) -> set[str]:
    ids = {f"agent-{index:05}" for index in range(count)}
    await asyncio.gather(*(registry.register(AgentInfo(i, **fields)) for i in ids))  # type: ignore[arg-type]
    return ids


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
async def test_list_and_scan_return_every_agent_once(registry: AgentRegistry, count: int) -> None:
    ids = await fill(registry, count)
    listed = await registry.list()
    assert sorted(agent.id for agent in listed) == sorted(ids)
    scanned = [agent async for agent in registry.scan()]
    assert sorted(agent.id for agent in scanned) == sorted(ids)
    assert sorted(listed, key=lambda agent: agent.id) == sorted(scanned, key=lambda agent: agent.id)


async def test_a_scan_may_be_left_early(registry: AgentRegistry) -> None:
    await fill(registry, 2500)
    async with aclosing(registry.scan()) as agents:
        first = await anext(agents)
    assert (await registry.get(first.id)).id == first.id


async def test_agents_that_stay_are_scanned_once_while_others_come_and_go(registry: AgentRegistry) -> None:
    staying = await fill(registry, 3000)
    seen: list[str] = []
    churned = 0
    async with aclosing(registry.scan()) as agents:
        async for agent in agents:
            seen.append(agent.id)
            if len(seen) % 300 == 0:
                passing = [f"passing-{churned + n}" for n in range(400)]
                churned += len(passing)
                await asyncio.gather(*(registry.register(AgentInfo(i)) for i in passing))
                await asyncio.gather(*(registry.deregister(i) for i in passing[:300]))
    assert churned > 2000
    assert len(seen) == len(set(seen))
    assert staying <= set(seen)


# --- reap ---


@pytest.mark.parametrize("ttl", [30, 30.0, 0.5, 1e-6, timedelta(seconds=30), timedelta(days=400)])
async def test_exactly_ttl_old_is_alive_and_a_microsecond_more_is_stale(store: Store, ttl: float | timedelta) -> None:
    span = ttl if isinstance(ttl, timedelta) else timedelta(seconds=ttl)
    async with store.make() as registry:
        await registry.register(AgentInfo("exact", last_heartbeat=NOW - span))
        await registry.register(AgentInfo("older", last_heartbeat=NOW - span - timedelta(microseconds=1)))
        await registry.register(AgentInfo("younger", last_heartbeat=NOW - span + timedelta(microseconds=1)))
        store.stop_sweeps_at(registry, NOW)
        assert await registry.reap(ttl) == ["older"]
        statuses = {agent.id: agent.status for agent in await registry.list()}
    assert statuses == {"exact": "available", "older": "offline", "younger": "available"}


async def test_reap_marks_each_silent_agent_once_whatever_it_was_doing(registry: AgentRegistry) -> None:
    for status in AgentStatus:
        await registry.register(AgentInfo(status.value, status=status, last_heartbeat=LONG_AGO, current_load=2))
        await registry.register(AgentInfo(f"fresh-{status.value}", status=status))
    assert sorted(await registry.reap(60)) == ["available", "busy", "unknown"]
    assert await registry.reap(60) == []
    found = {agent.id: (agent.status, agent.current_load) for agent in await registry.list()}
    assert {found[status.value] for status in AgentStatus} == {(AgentStatus.OFFLINE, 2)}
    assert all(found[f"fresh-{status.value}"][0] is status for status in AgentStatus)
    assert (await registry.get("busy")).last_heartbeat == LONG_AGO


async def test_an_agent_that_came_back_is_reported_again(registry: AgentRegistry) -> None:
    await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
    assert await registry.reap(60) == ["a"]
    await registry.heartbeat("a")
    assert await registry.reap(60) == []
    assert (await registry.get("a")).status is AgentStatus.AVAILABLE
    await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
    assert await registry.reap(60) == ["a"]


async def test_an_update_brings_nobody_back(registry: AgentRegistry) -> None:
    await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
    await registry.update("a", status=AgentStatus.BUSY)
    assert await registry.reap(60) == ["a"]


async def test_reap_of_many_pages_reports_every_stale_agent_once(registry: AgentRegistry) -> None:
    ids = await fill(registry, 2500, last_heartbeat=LONG_AGO)
    await registry.heartbeat_many([f"agent-{index:05}" for index in range(0, 2500, 5)])
    reaped = await registry.reap(3600)
    assert sorted(reaped) == sorted(i for i in ids if int(i[-5:]) % 5)


@pytest.mark.parametrize("ttl", [math.nan, math.inf, -math.inf, -1, -1e-9, True, "30", timedelta(seconds=-1)])
async def test_reap_refuses_a_ttl_that_is_no_duration_before_any_io(registry: AgentRegistry, ttl: object) -> None:
    await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
    with pytest.raises(ConfigurationError, match="ttl"):
        await registry.reap(ttl)  # type: ignore[arg-type]
    assert (await registry.get("a")).status is AgentStatus.AVAILABLE


@pytest.mark.parametrize("ttl", [1e300, timedelta.max, 86400.0 * 365 * 5000])
async def test_nothing_is_older_than_a_huge_ttl(registry: AgentRegistry, ttl: float | timedelta) -> None:
    await registry.register(AgentInfo("a", last_heartbeat=datetime.min.replace(tzinfo=UTC)))
    assert await registry.reap(ttl) == []


# --- flush ---


async def test_flush_deletes_every_agent_and_counts_them(registry: AgentRegistry) -> None:
    await fill(registry, 1234)
    assert await registry.flush() == 1234
    assert await registry.list() == []
    assert await registry.flush() == 0
    await registry.register(AgentInfo("a"))
    assert [agent.id for agent in await registry.list()] == ["a"]


# --- closing, order, and where a registry works ---


async def test_closing_lets_walks_and_calls_finish(store: Store) -> None:
    registry = store.make()
    await registry.open()
    ids = await fill(registry, 1200, last_heartbeat=LONG_AGO)
    walks = asyncio.gather(registry.reap(60), registry.list())
    calls = asyncio.gather(*(registry.get(agent_id) for agent_id in ids))
    await asyncio.sleep(0)
    await registry.aclose()
    reaped, listed = await walks
    assert set(reaped) == {agent.id for agent in listed} == ids
    assert {agent.id for agent in await calls} == ids


async def test_a_scan_left_open_ends_with_an_error_when_the_registry_is_closed(store: Store) -> None:
    registry = store.make(timeout=3)
    await registry.open()
    await fill(registry, 1200)
    async with aclosing(registry.scan()) as agents:
        await anext(agents)
        await registry.aclose()
        with pytest.raises(RegistryClosedError):
            async for _ in agents:
                pass


async def test_heartbeat_many_keeps_its_place_among_other_calls(registry: AgentRegistry) -> None:
    _, absent = await asyncio.gather(registry.register(AgentInfo("a")), registry.heartbeat_many(["a"]))
    assert absent == set()
    absent, _ = await asyncio.gather(registry.heartbeat_many(["a"]), registry.deregister("a"))
    assert absent == set()
    _, absent = await asyncio.gather(registry.register(AgentInfo("a")), registry.heartbeat_many(["a"]))
    assert absent == set()
    _, absent = await asyncio.gather(registry.deregister("a"), registry.heartbeat_many(["a"]))
    assert absent == {"a"}


async def test_a_loop_of_calls_can_be_cancelled(registry: AgentRegistry) -> None:
    await registry.register(AgentInfo("a"))

    async def beat() -> None:
        while True:
            await registry.heartbeat("a")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(beat(), 0.05)


async def test_a_registry_is_not_opened_while_it_closes(registry: AgentRegistry) -> None:
    call = asyncio.create_task(registry.register(AgentInfo("a")))
    await asyncio.sleep(0)
    closing = asyncio.create_task(registry.aclose())
    await asyncio.sleep(0)
    with pytest.raises(RegistryError, match="not yet closed"):
        await registry.open()
    await asyncio.gather(call, closing)
    await registry.open()


def test_a_registry_used_in_another_event_loop_says_so(store: Store) -> None:
    registry = store.make()

    async def use() -> None:
        with pytest.raises(RegistryClosedError, match="opened in another event loop: open one in each"):
            await registry.get("a")
        with pytest.raises(RegistryClosedError, match="opened in another event loop"):
            await registry.list()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(registry.open())
        second.run(use())
        first.run(registry.aclose())


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_registry_whose_event_loop_has_ended_can_be_opened_anew(store: Store) -> None:
    registry = store.make()

    async def use() -> None:
        async with registry:
            await registry.register(AgentInfo("a"))

    asyncio.run(registry.open())
    asyncio.run(use())
    for _ in range(5):
        gc.collect()  # What the first loop left open is told here, not in the test that happens to collect it.


def test_a_registry_that_nobody_closes_says_so() -> None:
    asyncio.run(MemoryRegistry().open())
    with pytest.warns(ResourceWarning, match="unclosed MemoryRegistry"):
        gc.collect()

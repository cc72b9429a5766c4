"""Each agent that a sweep takes offline is reported, whatever ends the sweep, and whatever the store's clock does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta

import pytest

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentStatus,
    BackendUnavailableError,
    ConfigurationError,
    RegistryClosedError,
)
from agentic.testing.waiting import wait_until
from tests.support.stores import LONG_AGO, RedisStore, Store

IDS = [f"agent-{number}" for number in range(6)]


class SlowAnswers:
    """Hands what a registry's sweeps mark over in pages of two, each of them not before it is let through.

    The store has marked them already by then: only its answers are late.
    """

    def __init__(self, registry: AgentRegistry) -> None:
        self.withheld = 0
        self.let_through = 0
        self._sweep = registry.backend.sweep
        registry.backend.sweep = self.sweep  # type: ignore[method-assign]

    async def sweep(self, ttl: timedelta) -> AsyncGenerator[Sequence[str], None]:
        async with aclosing(self._sweep(ttl)) as pages:
            marked = [agent_id async for page in pages for agent_id in page]
        for start in range(0, len(marked), 2):
            self.withheld += 1
            await wait_until(lambda: self.let_through >= self.withheld, "the answer is let through")
            yield marked[start : start + 2]

    async def reached(self, page: int) -> None:
        await wait_until(lambda: self.withheld == page, f"page {page} is under way")


async def fill(registry: AgentRegistry) -> None:
    await asyncio.gather(*(registry.register(AgentInfo(agent_id, last_heartbeat=LONG_AGO)) for agent_id in IDS))


async def offline(registry: AgentRegistry) -> list[str]:
    return sorted(agent.id for agent in await registry.list() if agent.status is AgentStatus.OFFLINE)


async def test_reap_tells_each_page_as_soon_as_the_store_has_answered(registry: AgentRegistry) -> None:
    await fill(registry)
    answers = SlowAnswers(registry)
    told: list[str] = []
    reaping = asyncio.create_task(registry.reap(60, on_marked=told.extend))
    for page in (1, 2, 3):
        await answers.reached(page)
        assert len(told) == 2 * (page - 1)
        answers.let_through = page
    assert sorted(await reaping) == sorted(told) == IDS


async def test_a_cancelled_reap_tells_the_page_under_way_before_it_ends(registry: AgentRegistry) -> None:
    await fill(registry)
    answers = SlowAnswers(registry)
    told: list[str] = []
    reaping = asyncio.create_task(registry.reap(60, on_marked=told.extend))
    answers.let_through = 1
    await answers.reached(2)
    for _ in range(3):
        reaping.cancel()
        await asyncio.sleep(0)
    assert not reaping.done()
    answers.let_through = 2
    with pytest.raises(asyncio.CancelledError):
        await reaping
    assert len(told) == 4
    assert answers.withheld == 2


async def test_a_cancelled_reap_does_not_wait_for_longer_than_the_timeout(store: Store) -> None:
    async with store.make(timeout=1) as registry:
        await fill(registry)
        answers = SlowAnswers(registry)
        reaping = asyncio.create_task(registry.reap(60))
        await answers.reached(1)
        reaping.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await reaping


async def test_a_reap_that_times_out_names_what_was_marked_before(store: Store) -> None:
    async with store.make(timeout=1) as registry:
        await fill(registry)
        answers = SlowAnswers(registry)
        told: list[str] = []
        answers.let_through = 2
        with pytest.raises(BackendUnavailableError, match="did not answer within 1 s") as caught:
            await registry.reap(60, on_marked=told.extend)
        assert len(told) == 4
        assert caught.value.reaped == tuple(told)


async def test_closing_waits_for_the_page_under_way_and_the_reap_names_it(store: Store) -> None:
    registry = store.make(timeout=1)
    await registry.open()
    await fill(registry)
    answers = SlowAnswers(registry)
    told: list[str] = []
    reaping = asyncio.create_task(registry.reap(60, on_marked=told.extend))
    await answers.reached(1)
    lanes = registry._open_dispatcher
    assert lanes is not None
    told_when_disconnected: list[int] = []
    disconnect = registry.backend.close

    async def noted() -> None:
        told_when_disconnected.append(len(told))
        await disconnect()

    registry.backend.close = noted  # type: ignore[method-assign]
    closing = asyncio.create_task(registry.aclose())
    await asyncio.sleep(0.5)  # The second page may take longer than closing waits for the walk.
    answers.let_through = 1
    await answers.reached(2)
    await wait_until(lambda: lanes._closed, "no new page is fetched")
    answers.let_through = 2
    with pytest.raises(RegistryClosedError) as caught:
        await reaping
    await closing
    assert len(told) == told_when_disconnected[0] == 4
    assert caught.value.reaped == tuple(told)


async def test_a_reap_without_a_ttl_takes_the_registrys_stale_after(store: Store) -> None:
    async with store.make(stale_after=60) as registry:
        await fill(registry)
        await registry.register(AgentInfo("alive"))
        assert sorted(await registry.reap()) == IDS


async def test_an_on_marked_that_cannot_be_called_is_refused_before_anybody_is_marked(registry: AgentRegistry) -> None:
    await fill(registry)
    with pytest.raises(ConfigurationError, match="^on_marked: must be callable, got int$"):
        await registry.reap(60, on_marked=5)  # type: ignore[arg-type]
    assert await offline(registry) == []


async def test_an_exception_of_on_marked_ends_the_reap(registry: AgentRegistry) -> None:
    await fill(registry)

    def fail(_: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await registry.reap(60, on_marked=fail)
    assert await offline(registry)


async def test_on_marked_hears_nothing_of_a_sweep_that_marks_nobody(registry: AgentRegistry) -> None:
    await registry.register(AgentInfo("alive"))
    told: list[list[str]] = []
    assert await registry.reap(60, on_marked=told.append) == []
    assert told == []


async def test_an_agent_goes_offline_again_when_an_update_of_its_status_has_brought_it_back(
    registry: AgentRegistry,
) -> None:
    await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
    assert await registry.reap(60) == ["a"]
    assert await registry.reap(60) == []
    await registry.update("a", current_load=1)
    assert await registry.reap(60) == []
    await registry.update("a", status=AgentStatus.BUSY)
    assert await registry.reap(60) == ["a"]


# --- the registry's own ttl, and the store's clock ---


async def test_an_agent_that_outlived_the_ttl_without_being_marked_is_reported_once(store: Store) -> None:
    async with store.make(ttl=100) as registry:
        await registry.register(AgentInfo("a"))
        await registry.register(AgentInfo("marked", last_heartbeat=LONG_AGO))
        assert await registry.reap(50) == ["marked"]
        await store.let_pass(101)
        for call in (registry.heartbeat, registry.deregister):
            with pytest.raises(AgentNotFoundError):
                await call("a")
        told: list[str] = []
        expected = [] if store.drops_expired else ["a"]
        # Even by a sweep whose own `ttl` is longer: nobody else can report it any more.
        assert await registry.reap(1000, on_marked=told.extend) == expected
        assert told == expected
        assert await registry.reap(50) == []
        assert await registry.flush() == 0


async def test_heartbeats_in_the_stores_future_count_as_of_now(store: Store) -> None:
    async with store.make() as registry:
        await registry.register(AgentInfo("a"))
        await store.step_back(3600)
        read = [
            await registry.get("a"),
            *await registry.list(),
            await registry.update("a", name="x"),
            *[agent async for agent in registry.scan()],
        ]
        now = await registry.store_time()
        for agent in read:
            assert agent.last_heartbeat is not None
            assert now - timedelta(minutes=1) < agent.last_heartbeat <= now


async def test_after_a_step_back_of_the_stores_clock_a_sweep_lets_dead_agents_age(store: Store) -> None:
    async with store.make(ttl=100) as registry:
        await registry.register(AgentInfo("dead"))
        await registry.register(AgentInfo("alive"))
        await store.step_back(3600)
        assert await registry.reap(50) == []
        await store.let_pass(51)
        await registry.heartbeat("alive")
        assert await registry.reap(50) == ["dead"]
        await store.let_pass(50)
        assert [agent.id for agent in await registry.list()] == ["alive"]


async def test_time_that_passes_between_two_pages_takes_nobody_offline(store: Store) -> None:
    if isinstance(store, RedisStore):
        return  # Its clock cannot be moved in the middle of a walk; each server's time is read once.
    async with store.make(ttl=100) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(f"agent-{number}")) for number in range(1500)))
        async with aclosing(registry.backend.sweep(timedelta(seconds=50))) as pages:
            reported = list(await anext(pages, []))  # A default of () breaks anext in Python 3.11.
            await store.let_pass(200)
            reported += [agent_id async for page in pages for agent_id in page]
        assert reported == []
        await store.step_back(200)
        assert len(await registry.list()) == 1500

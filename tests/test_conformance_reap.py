"""Whatever ends a sweep, each agent that it marked offline is reported, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta

import pytest

from agentic import AgentInfo, AgentRegistry, AgentStatus, BackendUnavailableError, RegistryClosedError
from tests.stores import LONG_AGO, Store
from tests.waiting import wait_until

IDS = [f"agent-{number}" for number in range(6)]


class SlowAnswers:
    """Hands what a registry's sweeps mark over in pages of two, each of them not before it is let through.

    The store has marked them already by then: only its answers are late.
    """

    def __init__(self, registry: AgentRegistry) -> None:
        self.withheld = 0
        self.let_through = 0
        self._sweep = registry._sweep
        registry._sweep = self.sweep  # type: ignore[method-assign]

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
    async with store.make(timeout=0.1) as registry:
        await fill(registry)
        answers = SlowAnswers(registry)
        reaping = asyncio.create_task(registry.reap(60))
        await answers.reached(1)
        reaping.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await reaping


async def test_a_reap_that_times_out_names_what_was_marked_before(store: Store) -> None:
    async with store.make(timeout=0.2) as registry:
        await fill(registry)
        answers = SlowAnswers(registry)
        told: list[str] = []
        answers.let_through = 2
        with pytest.raises(BackendUnavailableError, match="did not answer within 0.2 s") as caught:
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
    lanes = registry._open_lanes
    assert lanes is not None
    closing = asyncio.create_task(registry.aclose())
    await asyncio.sleep(0.5)  # The second page may take longer than closing waits for the walk.
    answers.let_through = 1
    await answers.reached(2)
    await wait_until(lambda: lanes._closed, "no new page is fetched")
    answers.let_through = 2
    with pytest.raises(RegistryClosedError) as caught:
        await reaping
    await closing
    assert len(told) == 4
    assert caught.value.reaped == tuple(told)


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

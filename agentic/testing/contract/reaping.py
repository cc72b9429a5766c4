"""Sweeps: which agents `reap` marks offline, and that each is reported once, however the sweep ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from agentic.abc import Cursor, Step
from agentic.agent import AgentInfo, AgentStatus
from agentic.errors import AgentNotFoundError, BackendUnavailableError, ConfigurationError, RegistryClosedError
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import LONG_AGO, Contract, fill
from agentic.testing.contract.primitives import run_first
from agentic.testing.store import StoreUnderTest
from agentic.testing.waiting import wait_until

NOW = datetime(2026, 11, 23, 8, 0, 0, tzinfo=UTC)


class SlowAnswers:
    """Delays the answers to a registry's sweeps: pages of two agents, each returned once `released` reaches its number.

    The store has marked all agents before the first page; only the answers are late.
    """

    def __init__(self, registry: AgentRegistry) -> None:
        self.requested = 0
        self.released = 0
        self._sweep = registry.backend.sweep
        registry.backend.sweep = self.sweep  # type: ignore[method-assign]

    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        marked = await all_marked(partial(self._sweep, ttl)) if cursor is None else cursor
        if marked:
            self.requested += 1
            await wait_until(lambda: self.released >= self.requested, "the answer is released")
        return marked[:2], marked[2:] or None

    async def reached(self, page: int) -> None:
        await wait_until(lambda: self.requested == page, f"page {page} is in progress")


async def all_marked(sweep: Callable[[Cursor], Awaitable[Step[Sequence[str]]]], cursor: Cursor = None) -> list[str]:
    """Return the agents that a sweep marks from a cursor on."""
    marked: list[str] = []
    while True:
        page, cursor = await sweep(cursor)
        marked += page
        if cursor is None:
            return marked


async def offline(registry: AgentRegistry) -> list[str]:
    return sorted(agent.id for agent in await registry.list() if agent.status is AgentStatus.OFFLINE)


class Reaping(Contract):
    """Silent agents."""

    # --- who is marked ---

    @pytest.mark.parametrize("ttl", [30, 30.0, 0.5, 1e-6, timedelta(seconds=30), timedelta(days=400)])
    async def test_exactly_ttl_old_is_alive_and_a_microsecond_more_is_stale(
        self, clocked_store: StoreUnderTest, ttl: float | timedelta
    ) -> None:
        span = ttl if isinstance(ttl, timedelta) else timedelta(seconds=ttl)
        async with clocked_store.make() as registry:
            await registry.register(AgentInfo("exact", last_heartbeat=NOW - span))
            await registry.register(AgentInfo("older", last_heartbeat=NOW - span - timedelta(microseconds=1)))
            await registry.register(AgentInfo("younger", last_heartbeat=NOW - span + timedelta(microseconds=1)))
            clocked_store.stop_clock(registry, NOW)
            assert await registry.reap(ttl) == ["older"]
            statuses = {agent.id: agent.status for agent in await registry.list()}
        assert statuses == {"exact": "available", "older": "offline", "younger": "available"}

    async def test_reap_marks_each_silent_agent_once_whatever_its_status(self, registry: AgentRegistry) -> None:
        for status in AgentStatus:
            await registry.register(AgentInfo(status.value, status=status, last_heartbeat=LONG_AGO, current_load=2))
            await registry.register(AgentInfo(f"fresh-{status.value}", status=status))
        assert sorted(await registry.reap(60)) == ["available", "busy", "unknown"]
        assert await registry.reap(60) == []
        found = {agent.id: (agent.status, agent.current_load) for agent in await registry.list()}
        assert {found[status.value] for status in AgentStatus} == {(AgentStatus.OFFLINE, 2)}
        assert all(found[f"fresh-{status.value}"][0] is status for status in AgentStatus)
        assert (await registry.get("busy")).last_heartbeat == LONG_AGO

    async def test_an_agent_that_came_back_is_reported_again(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        assert await registry.reap(60) == ["a"]
        await registry.heartbeat("a")
        assert await registry.reap(60) == []
        assert (await registry.get("a")).status is AgentStatus.AVAILABLE
        await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        assert await registry.reap(60) == ["a"]

    @pytest.mark.parametrize("status", [status for status in AgentStatus if status is not AgentStatus.OFFLINE])
    async def test_a_heartbeat_after_a_sweep_restores_the_status_before_it(
        self, registry: AgentRegistry, status: AgentStatus
    ) -> None:
        await registry.register(AgentInfo("a", status=status, last_heartbeat=LONG_AGO, unready="loading"))
        assert await registry.reap(60) == ["a"]
        await registry.update("a", current_load=1)
        assert await registry.reap(60) == []
        await registry.heartbeat("a")
        agent = await registry.get("a")
        assert (agent.status, agent.current_load, agent.unready) == (status, 1, "loading")
        await registry.update("a", status=AgentStatus.OFFLINE)
        await registry.heartbeat("a")
        assert (await registry.get("a")).status is AgentStatus.AVAILABLE

    async def test_a_status_written_after_a_sweep_stays(self, registry: AgentRegistry) -> None:
        for written, expected in [(AgentStatus.UNKNOWN, "unknown"), (AgentStatus.OFFLINE, "available")]:
            await registry.register(AgentInfo("a", status=AgentStatus.BUSY, last_heartbeat=LONG_AGO))
            assert await registry.reap(60) == ["a"]
            await registry.update("a", status=written)
            await registry.heartbeat("a")
            assert (await registry.get("a")).status == expected

    async def test_a_registration_after_a_sweep_discards_the_status_before_it(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a", status=AgentStatus.BUSY, last_heartbeat=LONG_AGO))
        assert await registry.reap(60) == ["a"]
        await registry.register(AgentInfo("a", status=AgentStatus.OFFLINE))
        await registry.heartbeat("a")
        assert (await registry.get("a")).status is AgentStatus.AVAILABLE

    async def test_an_update_does_not_revive_an_agent(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        await registry.update("a", status=AgentStatus.BUSY)
        assert await registry.reap(60) == ["a"]

    async def test_an_agent_goes_offline_again_after_an_update_of_its_status_revived_it(
        self,
        registry: AgentRegistry,
    ) -> None:
        await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        assert await registry.reap(60) == ["a"]
        assert await registry.reap(60) == []
        await registry.update("a", current_load=1)
        assert await registry.reap(60) == []
        await registry.update("a", status=AgentStatus.BUSY)
        assert await registry.reap(60) == ["a"]

    async def test_reap_of_many_pages_reports_every_stale_agent_once(self, registry: AgentRegistry) -> None:
        ids = await fill(registry, 2500, last_heartbeat=LONG_AGO)
        await registry.heartbeat_many([f"agent-{index:05}" for index in range(0, 2500, 5)])
        reaped = await registry.reap(3600)
        assert sorted(reaped) == sorted(i for i in ids if int(i[-5:]) % 5)

    @pytest.mark.parametrize("ttl", [math.nan, math.inf, -math.inf, -1, -1e-9, True, "30", timedelta(seconds=-1)])
    async def test_reap_refuses_an_invalid_ttl_before_any_io(self, registry: AgentRegistry, ttl: object) -> None:
        await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        with pytest.raises(ConfigurationError, match="ttl"):
            await registry.reap(ttl)  # type: ignore[arg-type]
        assert (await registry.get("a")).status is AgentStatus.AVAILABLE

    @pytest.mark.parametrize("ttl", [1e300, timedelta.max, 86400.0 * 365 * 5000])
    async def test_nothing_is_older_than_a_huge_ttl(self, registry: AgentRegistry, ttl: float | timedelta) -> None:
        await registry.register(AgentInfo("a", last_heartbeat=datetime.min.replace(tzinfo=UTC)))
        assert await registry.reap(ttl) == []

    async def test_a_reap_without_a_ttl_uses_the_registrys_stale_after(self, store: StoreUnderTest) -> None:
        async with store.make(stale_after=60) as registry:
            silent = await fill(registry, 6, last_heartbeat=LONG_AGO)
            await registry.register(AgentInfo("alive"))
            assert set(await registry.reap()) == silent

    # --- who is reported, and when ---

    async def test_reap_reports_each_page_as_soon_as_the_store_has_answered(self, registry: AgentRegistry) -> None:
        silent = await fill(registry, 6, last_heartbeat=LONG_AGO)
        answers = SlowAnswers(registry)
        reported: list[str] = []
        reaping = asyncio.create_task(registry.reap(60, on_marked=reported.extend))
        for page in (1, 2, 3):
            await answers.reached(page)
            assert len(reported) == 2 * (page - 1)
            answers.released = page
        assert await reaping == reported
        assert sorted(reported) == sorted(silent)

    async def test_a_cancelled_reap_reports_the_current_page_before_it_ends(self, registry: AgentRegistry) -> None:
        await fill(registry, 6, last_heartbeat=LONG_AGO)
        answers = SlowAnswers(registry)
        reported: list[str] = []
        reaping = asyncio.create_task(registry.reap(60, on_marked=reported.extend))
        answers.released = 1
        await answers.reached(2)
        for _ in range(3):
            reaping.cancel()
            await asyncio.sleep(0)
        assert not reaping.done()
        answers.released = 2
        with pytest.raises(asyncio.CancelledError):
            await reaping
        assert len(reported) == 4
        assert answers.requested == 2

    async def test_a_cancelled_reap_does_not_wait_for_longer_than_the_timeout(self, store: StoreUnderTest) -> None:
        async with store.make(timeout=1) as registry:
            await fill(registry, 6, last_heartbeat=LONG_AGO)
            answers = SlowAnswers(registry)
            reaping = asyncio.create_task(registry.reap(60))
            await answers.reached(1)
            reaping.cancel()
            async with asyncio.timeout(10):
                with pytest.raises(asyncio.CancelledError):
                    await reaping

    async def test_a_reap_that_times_out_names_what_was_marked_before(self, store: StoreUnderTest) -> None:
        async with store.make(timeout=1) as registry:
            await fill(registry, 6, last_heartbeat=LONG_AGO)
            answers = SlowAnswers(registry)
            reported: list[str] = []
            answers.released = 2
            with pytest.raises(BackendUnavailableError, match="did not answer within 1 s") as caught:
                await registry.reap(60, on_marked=reported.extend)
            assert len(reported) == 4
            assert caught.value.reaped == tuple(reported)

    async def test_closing_waits_for_the_current_page_and_the_reap_names_it(self, store: StoreUnderTest) -> None:
        registry = store.make(timeout=2)
        await registry.open()
        await fill(registry, 6, last_heartbeat=LONG_AGO)
        answers = SlowAnswers(registry)
        reported: list[str] = []
        reaping = asyncio.create_task(registry.reap(60, on_marked=reported.extend))
        await answers.reached(1)
        reported_when_closed: list[int] = []

        async def count() -> None:
            reported_when_closed.append(len(reported))

        run_first(registry, "close", count)
        began_at = time.monotonic()
        closing = asyncio.create_task(registry.aclose())
        await asyncio.sleep(1)  # So the second page may take longer than closing waits for walks.
        answers.released = 1
        await answers.reached(2)
        await wait_until(lambda: time.monotonic() > began_at + 2.3, "closing has waited for walks for its timeout")
        answers.released = 2
        with pytest.raises(RegistryClosedError) as caught:
            await reaping
        await closing
        assert len(reported) == reported_when_closed[0] == 4
        assert caught.value.reaped == tuple(reported)

    async def test_an_on_marked_that_is_not_callable_is_refused_before_any_agent_is_marked(
        self, registry: AgentRegistry
    ) -> None:
        await fill(registry, 6, last_heartbeat=LONG_AGO)
        with pytest.raises(ConfigurationError, match="^on_marked: must be callable, got int$"):
            await registry.reap(60, on_marked=5)  # type: ignore[arg-type]
        assert await offline(registry) == []

    async def test_an_exception_of_on_marked_ends_the_reap(self, registry: AgentRegistry) -> None:
        await fill(registry, 6, last_heartbeat=LONG_AGO)

        def fail(_: list[str]) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await registry.reap(60, on_marked=fail)
        assert await offline(registry)

    async def test_on_marked_is_not_called_for_a_sweep_that_marks_no_agent(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("alive"))
        reported: list[list[str]] = []
        assert await registry.reap(60, on_marked=reported.append) == []
        assert reported == []

    # --- the registry's own ttl, and the store's clock ---

    async def test_an_agent_that_outlived_the_ttl_without_being_marked_is_reported_once(
        self, clocked_store: StoreUnderTest
    ) -> None:
        async with clocked_store.make(ttl=100) as registry:
            await registry.register(AgentInfo("a"))
            await registry.register(AgentInfo("marked", last_heartbeat=LONG_AGO))
            assert await registry.reap(50) == ["marked"]
            await clocked_store.pass_time(101)
            for call in (registry.heartbeat, registry.deregister):
                with pytest.raises(AgentNotFoundError):
                    await call("a")
            reported: list[str] = []
            expected = [] if clocked_store.drops_expired else ["a"]
            # Even by a sweep with a longer `ttl`, because no later sweep can report it.
            assert await registry.reap(1000, on_marked=reported.extend) == expected
            assert reported == expected
            assert await registry.reap(50) == []
            assert await registry.flush() == 0

    async def test_heartbeats_in_the_stores_future_count_as_of_now(self, clocked_store: StoreUnderTest) -> None:
        async with clocked_store.make() as registry:
            await registry.register(AgentInfo("a"))
            await clocked_store.step_back(3600)
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

    async def test_after_a_step_back_of_the_stores_clock_a_sweep_lets_dead_agents_age(
        self, clocked_store: StoreUnderTest
    ) -> None:
        async with clocked_store.make(ttl=100) as registry:
            await registry.register(AgentInfo("dead"))
            await registry.register(AgentInfo("alive"))
            await clocked_store.step_back(3600)
            assert await registry.reap(50) == []
            await clocked_store.pass_time(51)
            await registry.heartbeat("alive")
            assert await registry.reap(50) == ["dead"]
            await clocked_store.pass_time(50)
            assert [agent.id for agent in await registry.list()] == ["alive"]

    async def test_time_that_passes_between_two_pages_marks_no_agent_offline(
        self, clocked_store: StoreUnderTest
    ) -> None:
        clocked_store.require("clock during a sweep")
        async with clocked_store.make(ttl=100) as registry:
            await fill(registry, 1500)
            sweep = partial(registry.backend.sweep, timedelta(seconds=50))
            reported, cursor = await sweep(None)
            await clocked_store.pass_time(200)
            following = [] if cursor is None else await all_marked(sweep, cursor)
            assert [*reported, *following] == []
            await clocked_store.step_back(200)
            assert len(await registry.list()) == 1500

    async def test_a_step_back_of_the_clock_between_two_pages_marks_no_agent_offline(
        self, clocked_store: StoreUnderTest
    ) -> None:
        clocked_store.require("clock during a sweep")
        async with clocked_store.make(ttl=100) as registry:
            await fill(registry, 1500)
            sweep = partial(registry.backend.sweep, timedelta(seconds=50))
            reported, cursor = await sweep(None)
            await clocked_store.step_back(3600)
            following = [] if cursor is None else await all_marked(sweep, cursor)
            assert [*reported, *following] == []
            assert len(await registry.list()) == 1500

    async def test_a_sweep_keeps_heartbeats_that_arrive_between_two_pages(self, clocked_store: StoreUnderTest) -> None:
        clocked_store.require("clock during a sweep")
        async with clocked_store.make(ttl=100) as registry:
            ids = await fill(registry, 1500)
            sweep = partial(registry.backend.sweep, timedelta(seconds=50))
            _, cursor = await sweep(None)
            await clocked_store.pass_time(30)
            before = await registry.store_time()
            assert await registry.heartbeat_many(ids) == set()
            if cursor is not None:
                await all_marked(sweep, cursor)
            assert all(agent.last_heartbeat >= before for agent in await registry.list() if agent.last_heartbeat)
            assert {agent.id for agent in await registry.list() if agent.last_heartbeat} == ids

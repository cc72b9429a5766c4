"""Two registries on one store: they share agents; no agent reappears, is lost, or is reported twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import TypeVar

import pytest
import pytest_asyncio

from agentic.agent import AgentInfo, AgentStatus, Beat
from agentic.errors import AgentNotFoundError, AgentReplacedError
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import LONG_AGO, Contract
from agentic.testing.store import StoreUnderTest

ROUNDS = 120

ROUND_TRIPS_OF_A_REAP = 4

T = TypeVar("T")
Pair = tuple[AgentRegistry, AgentRegistry]


async def after_round_trips(count: int, registry: AgentRegistry, call: Awaitable[T]) -> T:
    """Make a call after some others, so that in some rounds it arrives in the middle of a concurrent reap."""
    for _ in range(count):
        with suppress(AgentNotFoundError):
            await registry.get("other")
    return await call


class Sharing(Contract):
    """Two registries, each with its own connections."""

    @pytest_asyncio.fixture(loop_scope="function")
    async def pair(self, store: StoreUnderTest) -> AsyncIterator[Pair]:
        """Two open registries on the store."""
        store.require("sharing")
        async with store.make() as one, store.make() as other:
            yield one, other

    async def test_what_one_registry_stores_the_other_finds(self, pair: Pair) -> None:
        one, other = pair
        stored = await one.register(AgentInfo("a", name="x", capabilities=["y"], metadata={"k": "v"}))
        assert await other.get("a") == stored
        changed = await other.update("a", current_load=1)
        assert await one.list() == [changed]
        await one.deregister("a")
        with pytest.raises(AgentNotFoundError):
            await other.heartbeat("a")

    async def test_agents_outlive_the_registry_that_stored_them(self, store: StoreUnderTest) -> None:
        store.require("sharing")
        async with store.make() as registry:
            stored = await registry.register(AgentInfo("a", name="x", last_heartbeat=LONG_AGO))
        async with store.make() as registry:
            assert await registry.list() == [stored]
            assert await registry.reap(60) == ["a"]
        async with store.make() as registry:
            assert await registry.reap(60) == []
            assert (await registry.get("a")).status is AgentStatus.OFFLINE

    async def test_no_update_is_lost_to_a_heartbeat(self, pair: Pair) -> None:
        one, other = pair
        await one.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        for round_ in range(ROUNDS):
            await asyncio.gather(
                one.update("a", current_load=round_),
                other.heartbeat("a"),
                other.update("a", name=f"name-{round_}"),
                one.heartbeat("a"),
            )
            found = await one.get("a")
            assert (found.current_load, found.name) == (round_, f"name-{round_}")
            assert found.last_heartbeat != LONG_AGO

    @pytest.mark.parametrize("call", ["heartbeat", "update", "reap"])
    async def test_nothing_brings_a_deregistered_agent_back(self, pair: Pair, call: str) -> None:
        one, other = pair

        async def disturb() -> None:
            try:
                if call == "heartbeat":
                    await other.heartbeat("a")
                elif call == "update":
                    await other.update("a", status=AgentStatus.BUSY)
                else:
                    await other.reap(60)
            except AgentNotFoundError:
                pass

        for round_ in range(ROUNDS):
            await one.register(AgentInfo("a", last_heartbeat=LONG_AGO))
            deregister = after_round_trips(round_ % (ROUND_TRIPS_OF_A_REAP + 1), one, one.deregister("a"))
            await asyncio.gather(deregister, disturb(), disturb())
            with pytest.raises(AgentNotFoundError):
                await other.get("a")

    async def test_a_heartbeat_that_landed_first_keeps_the_agent_alive(self, pair: Pair) -> None:
        one, other = pair
        for round_ in range(ROUNDS):
            await one.register(AgentInfo("a", last_heartbeat=LONG_AGO))
            heartbeat = after_round_trips(round_ % (ROUND_TRIPS_OF_A_REAP + 1), other, other.heartbeat("a"))
            reaped, _ = await asyncio.gather(one.reap(60), heartbeat)
            # Either order is valid and leaves the agent available: marked and revived, or never marked.
            assert reaped in ([], ["a"])
            assert (await other.get("a")).status is AgentStatus.AVAILABLE
            assert await other.reap(60) == []

    async def test_calls_of_an_old_start_race_with_its_restart(self, pair: Pair) -> None:
        old, new = pair

        async def call_until_replaced(incarnation: int) -> None:
            with suppress(AgentReplacedError):
                while True:
                    await old.heartbeat("a", incarnation=incarnation)
                    await old.update("a", incarnation=incarnation, name="old")

        for _ in range(ROUNDS // 2):
            first = await old.register(AgentInfo("a", name="old"))
            calling = asyncio.create_task(call_until_replaced(first.incarnation))
            second = await new.register(AgentInfo("a", name="new"))
            await calling
            with pytest.raises(AgentReplacedError):
                await old.deregister("a", incarnation=first.incarnation)
            found = await new.get("a")
            assert (found.incarnation, found.name) == (second.incarnation, "new")

    async def test_a_drain_races_with_registrations_and_heartbeats(self, pair: Pair) -> None:
        one, other = pair
        await other.register(AgentInfo("a"))
        for round_ in range(ROUNDS // 2):
            order, *_ = await asyncio.gather(
                after_round_trips(round_ % 3, one, one.drain("a", reason=f"{round_}")),
                other.register(AgentInfo("a")),
                other.heartbeat("a"),
                other.register(AgentInfo("a")),
            )
            assert (await other.heartbeat("a")).draining == order
            assert (await other.get("a")).draining == order
            await asyncio.gather(other.heartbeat("a"), one.resume("a"), other.register(AgentInfo("a")))
            assert await other.heartbeat("a") == Beat()
            assert (await other.get("a")).ready

    async def test_a_sweep_races_with_the_heartbeats_of_a_start(self, pair: Pair) -> None:
        one, other = pair
        for round_ in range(ROUNDS // 2):
            agent = await one.register(AgentInfo("a", status=AgentStatus.BUSY, last_heartbeat=LONG_AGO))
            beat = other.heartbeat("a", incarnation=agent.incarnation)
            reaped, found = await asyncio.gather(
                one.reap(60), after_round_trips(round_ % (ROUND_TRIPS_OF_A_REAP + 1), other, beat)
            )
            assert found == Beat(was_offline=bool(reaped))
            assert (await one.get("a")).status is AgentStatus.BUSY

    async def test_an_agent_that_beats_all_the_time_is_never_marked(self, pair: Pair) -> None:
        one, other = pair
        await one.register(AgentInfo("a"))
        stop = asyncio.Event()

        async def beat() -> None:
            while not stop.is_set():
                await one.heartbeat("a")

        beating = asyncio.create_task(beat())
        for _ in range(ROUNDS):
            assert await other.reap(60) == []
        stop.set()
        await beating
        assert (await other.get("a")).status is AgentStatus.AVAILABLE

    async def test_each_silent_agent_is_reported_by_one_reap(self, pair: Pair) -> None:
        one, other = pair
        ids = [f"agent-{number}" for number in range(20)]
        for _ in range(ROUNDS // 2):
            await asyncio.gather(*(one.register(AgentInfo(agent_id, last_heartbeat=LONG_AGO)) for agent_id in ids))
            answers = await asyncio.gather(one.reap(60), other.reap(60), one.reap(60), other.reap(60))
            assert sorted(agent_id for answer in answers for agent_id in answer) == sorted(ids)

    async def test_of_many_deregistrations_one_succeeds(self, pair: Pair) -> None:
        one, other = pair
        for _ in range(ROUNDS):
            await one.register(AgentInfo("a"))
            results = await asyncio.gather(
                *(registry.deregister("a") for registry in (one, other) * 3), return_exceptions=True
            )
            assert results.count(None) == 1
            assert sum(isinstance(result, AgentNotFoundError) for result in results) == 5

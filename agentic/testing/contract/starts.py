"""Starts: which start of an agent may change its record. Each case is a cell of the table in the page on concepts."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agentic.agent import AgentInfo, Beat
from agentic.errors import AgentNotFoundError, AgentReplacedError, InvalidAgentError
from agentic.incarnations import END, LOWEST
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import LONG_AGO, Contract
from agentic.testing.store import StoreUnderTest

YEARS = 400 * 86_400 * 10**6
"""More than a year, in the unit of incarnations."""

POISON = ["x", "", 1.5, -5, 7, LOWEST - 1, END, END - 1]

fenced_call = pytest.mark.parametrize("call", ["heartbeat", "update", "deregister"])


async def make(call: str, registry: AgentRegistry, incarnation: int) -> object:
    """Make one call on agent "a"."""
    if call == "heartbeat":
        return await registry.heartbeat("a", incarnation=incarnation)
    if call == "update":
        return await registry.update("a", incarnation=incarnation, current_load=9)
    await registry.deregister("a", incarnation=incarnation)
    return None


class Starts(Contract):
    """Calls that name an incarnation, and the incarnations that the store gives out."""

    # --- what a registration returns ---

    async def test_each_registration_without_an_incarnation_is_a_new_start(self, registry: AgentRegistry) -> None:
        agents = [await registry.register(AgentInfo("a", incarnation=END - 2)) for _ in range(20)]
        numbers = [agent.incarnation for agent in agents]
        assert numbers == sorted(set(numbers))
        assert all(LOWEST <= number < END for number in numbers)
        assert (await registry.get("a")).incarnation == numbers[-1]
        assert [agent.incarnation for agent in await registry.list()] == [numbers[-1]]
        assert [agent.incarnation for agent in (await registry.page()).agents] == [numbers[-1]]

    async def test_registrations_at_once_are_different_starts(self, registry: AgentRegistry) -> None:
        agents = await asyncio.gather(*(registry.register(AgentInfo("a", current_load=load)) for load in range(30)))
        assert len({agent.incarnation for agent in agents}) == 30
        assert (await registry.get("a")).incarnation == max(agent.incarnation for agent in agents)

    async def test_an_incarnation_stays_until_the_next_registration(self, registry: AgentRegistry) -> None:
        number = (await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))).incarnation
        assert await registry.reap(60) == ["a"]
        assert (await registry.get("a")).incarnation == number
        await registry.heartbeat("a")
        assert (await registry.update("a", name="n", metadata={"k": "v"}, unready="x")).incarnation == number
        await registry.heartbeat_many(["a"])
        assert (await registry.get("a")).incarnation == number

    async def test_a_start_after_a_deregistration_is_later_even_if_the_clock_was_set_back(
        self, clocked_store: StoreUnderTest
    ) -> None:
        async with clocked_store.make() as registry:
            first = await registry.register(AgentInfo("a"))
            await registry.deregister("a")
            await clocked_store.step_back(3600)
            assert (await registry.register(AgentInfo("a"))).incarnation > first.incarnation

    # --- the table: what is stored is of a later, the same or an earlier start, or is not there ---

    @fenced_call
    async def test_a_call_of_an_earlier_start_is_refused(self, registry: AgentRegistry, call: str) -> None:
        first = await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        await registry.reap(60)
        stored = await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        with pytest.raises(AgentReplacedError) as caught:
            await make(call, registry, first.incarnation)
        assert (caught.value.agent_id, caught.value.incarnation) == ("a", stored.incarnation)
        assert caught.value.code == 409
        assert await registry.get("a") == stored

    async def test_a_registration_of_an_earlier_start_is_refused(self, registry: AgentRegistry) -> None:
        first = await registry.register(AgentInfo("a"))
        stored = await registry.register(AgentInfo("a", name="second"))
        with pytest.raises(AgentReplacedError):
            await registry.register(AgentInfo("a"), incarnation=first.incarnation)
        assert await registry.get("a") == stored

    @fenced_call
    async def test_a_call_of_the_same_start_is_made(self, registry: AgentRegistry, call: str) -> None:
        stored = await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        result = await make(call, registry, stored.incarnation)
        if call == "heartbeat":
            assert result == Beat()
            after = await registry.get("a")
            assert after.last_heartbeat is not None
            assert after.last_heartbeat > LONG_AGO
            assert after.incarnation == stored.incarnation
        elif call == "update":
            assert result == await registry.get("a")
            assert (await registry.get("a")).current_load == 9
        else:
            assert await registry.list() == []

    async def test_a_start_that_registers_again_keeps_its_incarnation(self, registry: AgentRegistry) -> None:
        first = await registry.register(AgentInfo("a"))
        again = await registry.register(AgentInfo("a", name="again"), incarnation=first.incarnation)
        assert (again.incarnation, again.name) == (first.incarnation, "again")
        await registry.deregister("a")
        back = await registry.register(AgentInfo("a"), incarnation=first.incarnation)
        assert back.incarnation == first.incarnation
        assert await registry.get("a") == back

    @fenced_call
    async def test_what_an_earlier_start_has_stored_is_absent_for_a_call(
        self, registry: AgentRegistry, call: str
    ) -> None:
        stored = await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        with pytest.raises(AgentNotFoundError):
            await make(call, registry, stored.incarnation + 1)
        assert await registry.get("a") == stored

    async def test_a_later_start_that_registers_replaces_an_earlier_one_for_good(self, registry: AgentRegistry) -> None:
        first = await registry.register(AgentInfo("a"))
        later = await registry.register(AgentInfo("a"), incarnation=first.incarnation + 5000)
        assert later.incarnation == first.incarnation + 5000
        # New starts follow it, even after it was removed.
        await registry.deregister("a", incarnation=later.incarnation)
        assert (await registry.register(AgentInfo("a"))).incarnation > later.incarnation

    @fenced_call
    async def test_a_call_on_an_absent_agent_says_so(self, registry: AgentRegistry, call: str) -> None:
        number = (await registry.register(AgentInfo("b"))).incarnation
        with pytest.raises(AgentNotFoundError):
            await make(call, registry, number)
        assert [agent.id for agent in await registry.list()] == ["b"]

    async def test_calls_of_several_starts_at_once_each_get_their_own_answer(self, registry: AgentRegistry) -> None:
        ids = [f"agent-{number}" for number in range(300)]
        firsts = await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids[::3]))
        await asyncio.gather(*(registry.deregister(agent_id) for agent_id in ids[1::3]))
        answers = await asyncio.gather(
            *(registry.heartbeat(agent.id, incarnation=agent.incarnation) for agent in firsts), return_exceptions=True
        )
        kinds = [AgentReplacedError, AgentNotFoundError, Beat]
        assert [type(answer) for answer in answers] == [kinds[number % 3] for number in range(300)]

    # --- heartbeats ---

    async def test_a_heartbeat_says_whether_the_agent_was_offline(self, registry: AgentRegistry) -> None:
        agent = await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
        for incarnation in (agent.incarnation, 0):
            assert await registry.reap(60) in (["a"], [])
            await registry.update("a", status="offline")
            assert await registry.heartbeat("a", incarnation=incarnation) == Beat(was_offline=True)
            assert await registry.heartbeat("a", incarnation=incarnation) == Beat()

    # --- records of programs that do not know incarnations ---

    async def test_a_record_that_lost_its_incarnation_is_everybodys(self, store: StoreUnderTest) -> None:
        store.require("foreign writes")
        async with store.make() as registry:
            number = (await registry.register(AgentInfo("a", name="n", unready="loading"))).incarnation
            await store.rewrite("a")
            assert (await registry.get("a")).incarnation == 0
            assert (await registry.get("a")).ready
            assert await registry.heartbeat("a") == Beat()
            for _ in range(2):
                assert await registry.heartbeat("a", incarnation=number) == Beat(rewritten=True)
            assert (await registry.get("a")).incarnation == 0
            assert (await registry.update("a", name="o")).incarnation == 0
            assert (await registry.update("a", incarnation=number, name="p")).incarnation == number
            assert (await registry.get("a")).incarnation == number
            assert await registry.heartbeat("a", incarnation=number) == Beat()
            await store.rewrite("a")
            again = await registry.register(AgentInfo("a"), incarnation=number)
            assert again.incarnation == number
            await store.rewrite("a")
            await registry.deregister("a", incarnation=number)
            assert await registry.list() == []

    async def test_a_start_that_replaces_a_record_without_an_incarnation_is_a_new_one(
        self, store: StoreUnderTest
    ) -> None:
        store.require("foreign writes")
        async with store.make() as registry:
            first = await registry.register(AgentInfo("a"))
            await store.rewrite("a")
            assert (await registry.register(AgentInfo("a"))).incarnation > first.incarnation

    @pytest.mark.parametrize("poison", POISON, ids=repr)
    async def test_a_poisoned_incarnation_counts_as_none(self, store: StoreUnderTest, poison: Any) -> None:
        store.require("foreign writes")
        async with store.make() as registry:
            number = (await registry.register(AgentInfo("a"))).incarnation
            await store.rewrite("a", poison)
            assert [agent.incarnation for agent in await registry.list()] == [0]
            assert (await registry.get("a")).incarnation == 0
            assert await registry.heartbeat("a") == Beat()
            assert await registry.heartbeat("a", incarnation=number) == Beat(rewritten=True)
            assert (await registry.update("a", incarnation=number, name="p")).incarnation == number
            await store.rewrite("a", poison)
            fresh = await registry.register(AgentInfo("a"))
            assert number < fresh.incarnation < number + YEARS
            await store.rewrite("a", poison)
            await registry.deregister("a", incarnation=number)
            assert await registry.list() == []

    async def test_a_corrupt_record_is_no_reason_for_an_earlier_start_to_replace_a_later_one(
        self, store: StoreUnderTest
    ) -> None:
        store.require("corruption")
        async with store.make() as registry:
            first = await registry.register(AgentInfo("a"))
            later = await registry.register(AgentInfo("a"))
            await store.corrupt("a")
            again = await registry.register(AgentInfo("a"), incarnation=later.incarnation)
            assert again.incarnation == later.incarnation
            with pytest.raises(AgentReplacedError):
                await registry.register(AgentInfo("a"), incarnation=first.incarnation)

    # --- wrong incarnations ---

    @pytest.mark.parametrize("wrong", ["x", True, 1.5, -1, 5, LOWEST - 1, END, None], ids=repr)
    async def test_a_wrong_incarnation_is_refused_before_any_io(self, registry: AgentRegistry, wrong: Any) -> None:
        stored = await registry.register(AgentInfo("a"))
        for call in (
            registry.heartbeat("a", incarnation=wrong),
            registry.update("a", incarnation=wrong, name="n"),
            registry.deregister("a", incarnation=wrong),
            registry.register(AgentInfo("a"), incarnation=wrong),
        ):
            with pytest.raises(InvalidAgentError) as caught:
                await call
            assert caught.value.field == "incarnation"
        assert await registry.get("a") == stored

    @fenced_call
    async def test_an_incarnation_far_ahead_of_the_clock_is_refused(self, registry: AgentRegistry, call: str) -> None:
        stored = await registry.register(AgentInfo("a"))
        with pytest.raises(InvalidAgentError, match="a year ahead") as caught:
            await make(call, registry, stored.incarnation + YEARS)
        assert caught.value.field == "incarnation"
        with pytest.raises(InvalidAgentError, match="a year ahead"):
            await registry.register(AgentInfo("a"), incarnation=stored.incarnation + YEARS)
        assert await registry.get("a") == stored

    # --- the warning ---

    async def test_a_registration_by_the_same_registry_is_not_logged(
        self, registry: AgentRegistry, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        for _ in range(3):
            agent = await registry.register(AgentInfo("a"))
            await registry.heartbeat("a", incarnation=agent.incarnation)
        assert caplog.records == []

    async def test_a_start_that_replaces_a_live_one_is_logged(
        self, store: StoreUnderTest, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.require("sharing")
        caplog.set_level(logging.WARNING)
        async with store.make() as old, store.make() as new:
            first = await old.register(AgentInfo("a", last_heartbeat=LONG_AGO))
            await new.register(AgentInfo("a"), incarnation=first.incarnation)
            await old.register(AgentInfo("b", last_heartbeat=LONG_AGO))
            await new.register(AgentInfo("b"))
            await old.deregister("b")
            await new.register(AgentInfo("b"))
            assert caplog.records == []
            await old.register(AgentInfo("b"))
        (record,) = caplog.records
        assert "agent 'b' was started again while another start of it was alive" in record.getMessage()
        assert getattr(record, "agent_id", None) == "b"

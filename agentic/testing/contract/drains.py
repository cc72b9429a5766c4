"""Drains: operators' orders that agents get no new work."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from agentic.agent import AgentInfo, AgentStatus, Beat, Drain
from agentic.errors import AgentNotFoundError, ConfigurationError, InvalidAgentError
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import LONG_AGO, Contract
from agentic.testing.store import StoreUnderTest
from agentic.testing.waiting import wait_until


async def drain_seen(registry: AgentRegistry, agent_id: str = "a") -> Drain | None:
    """Return the drain of an agent; every way to read it must show the same."""
    agent = await registry.get(agent_id)
    listed = [each.draining for each in await registry.list() if each.id == agent_id]
    paged = [each.draining for each in (await registry.page()).agents if each.id == agent_id]
    scanned = [each.draining async for each in registry.scan() if each.id == agent_id]
    assert listed == paged == scanned == [agent.draining]
    assert agent.ready == (agent.draining is None)
    return agent.draining


class Drains(Contract):
    """`drain`, `resume` and `drains`."""

    async def test_a_drain_is_seen_by_everybody_until_it_is_ended(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a"))
        await registry.register(AgentInfo("b"))
        drain = await registry.drain("a", reason="new disk", by="ops")
        assert (drain.reason, drain.by, drain.ends_at) == ("new disk", "ops", None)
        assert abs(await registry.store_time() - drain.drained_at) < timedelta(minutes=1)
        assert await drain_seen(registry) == drain
        assert await registry.drains() == {"a": drain}
        assert await registry.heartbeat("a") == Beat(draining=drain)
        assert (await registry.update("a", current_load=1)).draining == drain
        assert await drain_seen(registry, "b") is None
        assert await registry.heartbeat("b") == Beat()
        assert await registry.resume("a") is True
        assert await registry.resume("a") is False
        assert await drain_seen(registry) is None
        assert await registry.heartbeat("a") == Beat()
        assert await registry.heartbeat("a") == Beat()
        assert await registry.drains() == {}
        assert (await registry.get("a")).current_load == 1

    async def test_a_drain_survives_whatever_happens_to_its_agent(self, registry: AgentRegistry) -> None:
        first = await registry.register(AgentInfo("a", status=AgentStatus.BUSY, last_heartbeat=LONG_AGO))
        drain = await registry.drain("a", reason="r")
        assert await registry.reap(60) == ["a"]
        assert (await registry.get("a")).draining == drain
        found = await registry.heartbeat("a", incarnation=first.incarnation)
        assert found == Beat(was_offline=True, draining=drain)
        assert (await registry.get("a")).status is AgentStatus.BUSY
        await registry.heartbeat_many(["a"])
        assert (await registry.register(AgentInfo("a"))).draining == drain
        assert await drain_seen(registry) == drain
        await registry.deregister("a")
        assert await registry.drains() == {"a": drain}
        assert (await registry.register(AgentInfo("a"))).draining == drain
        assert await registry.heartbeat("a") == Beat(draining=drain)

    async def test_an_agent_that_is_not_there_yet_can_be_drained(self, registry: AgentRegistry) -> None:
        drain = await registry.drain("a", reason="r")
        with pytest.raises(AgentNotFoundError):
            await registry.get("a")
        assert await registry.list() == []
        assert (await registry.register(AgentInfo("a"))).draining == drain
        assert await drain_seen(registry) == drain
        assert await registry.heartbeat("a") == Beat(draining=drain)

    async def test_a_second_drain_replaces_the_first(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a"))
        await registry.drain("a", reason="first", by="x", duration=3600)
        drain = await registry.drain("a", reason="second")
        assert (drain.reason, drain.by, drain.ends_at) == ("second", "", None)
        assert await drain_seen(registry) == drain
        assert await registry.drains() == {"a": drain}

    async def test_a_drain_ends_by_itself(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a"))
        long = await registry.drain("a", reason="r", duration=timedelta(hours=1))
        assert long.ends_at == long.drained_at + timedelta(hours=1)
        assert await drain_seen(registry) == long
        await registry.drain("a", reason="r", duration=0.2)

        async def has_ended() -> bool:
            return (await registry.get("a")).draining is None

        await wait_until(has_ended, "the drain has ended")
        assert await drain_seen(registry) is None
        assert await registry.drains() == {}
        assert await registry.heartbeat("a") == Beat()
        assert await registry.resume("a") is False

    async def test_a_drain_is_found_although_another_program_rewrites_the_record(self, store: StoreUnderTest) -> None:
        store.require("foreign writes")
        async with store.make() as registry:
            number = (await registry.register(AgentInfo("a"))).incarnation
            drain = await registry.drain("a", reason="r")
            await store.rewrite("a")
            assert await drain_seen(registry) == drain
            assert await registry.heartbeat("a") == Beat(draining=drain)
            assert await registry.heartbeat("a", incarnation=number) == Beat(draining=drain, rewritten=True)
            assert (await registry.update("a", incarnation=number, name="n")).draining == drain
            assert await registry.heartbeat("a", incarnation=number) == Beat(draining=drain)
            assert await drain_seen(registry) == drain
            # No heartbeat between the rewrite and the update.
            await store.rewrite("a")
            assert (await registry.update("a", incarnation=number, name="n")).draining == drain
            assert await drain_seen(registry) == drain
            assert await registry.heartbeat("a", incarnation=number) == Beat(draining=drain)
            await store.rewrite("a")
            await registry.resume("a")
            await registry.update("a", incarnation=number, name="n")
            assert await registry.heartbeat("a", incarnation=number) == Beat()
            assert await drain_seen(registry) is None

    async def test_an_agent_that_is_gone_comes_back_drained(self, clocked_store: StoreUnderTest) -> None:
        async with clocked_store.make(ttl=60) as registry:
            await registry.register(AgentInfo("a"))
            drain = await registry.drain("a", reason="r")
            await clocked_store.pass_time(61)
            assert await registry.list() == []
            assert [*await registry.drains()] == ["a"]
            assert (await registry.register(AgentInfo("a"))).draining == drain

    async def test_many_agents_are_drained_at_once(self, registry: AgentRegistry) -> None:
        ids = [f"agent-{number}" for number in range(700)]
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
        drains = await asyncio.gather(*(registry.drain(agent_id, reason=agent_id) for agent_id in ids[::2]))
        assert await registry.drains() == dict(zip(ids[::2], drains, strict=True))
        reasons = {agent.id: agent.draining.reason for agent in await registry.list() if agent.draining}
        assert reasons == {agent_id: agent_id for agent_id in ids[::2]}
        beats = await asyncio.gather(*map(registry.heartbeat, ids))
        assert [beat.draining and beat.draining.reason for beat in beats[::2]] == ids[::2]
        assert all(beat == Beat() for beat in beats[1::2])
        assert all(await asyncio.gather(*map(registry.resume, ids[::2])))
        assert await registry.drains() == {}

    async def test_drains_keep_their_place_among_other_calls(self, registry: AgentRegistry) -> None:
        for _ in range(20):
            results: Any = await asyncio.gather(
                registry.register(AgentInfo("a")),
                registry.drain("a", reason="1"),
                registry.get("a"),
                registry.register(AgentInfo("a")),
                registry.resume("a"),
                registry.get("a"),
            )
            seen = [results[at].draining and results[at].draining.reason for at in (0, 2, 3, 5)]
            assert seen == [None, "1", "1", None]
            assert results[4] is True

    async def test_flush_removes_drains(self, registry: AgentRegistry) -> None:
        await registry.drain("a", reason="r")
        assert await registry.flush() == 0
        assert await registry.drains() == {}
        await registry.register(AgentInfo("a"))
        await registry.drain("a", reason="r")
        assert await registry.flush() == 1
        assert await registry.drains() == {}
        assert (await registry.register(AgentInfo("a"))).draining is None

    async def test_a_registration_does_not_take_over_what_was_read(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a"))
        await registry.drain("a", reason="r")
        drained = await registry.get("a")
        await registry.resume("a")
        assert (await registry.register(drained)).draining is None
        assert await drain_seen(registry) is None

    async def test_hostile_texts_are_kept(self, registry: AgentRegistry) -> None:
        agent_id, text = '"},"ends_at":"2000', '"}\n\\ \u2028 é 😀 ,"ends_at":"2000-01-01T00:00:00.000000Z"}'
        await registry.register(AgentInfo(agent_id))
        drain = await registry.drain(agent_id, reason=text, by=text)
        assert (drain.reason, drain.by) == (text, text)
        assert await registry.drains() == {agent_id: drain}
        assert await drain_seen(registry, agent_id) == drain
        assert await registry.heartbeat(agent_id) == Beat(draining=drain)

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            ({"reason": ""}, "reason"), ({"reason": 5}, "reason"), ({"reason": "x" * 1025}, "reason"),
            ({"reason": "\ud800"}, "reason"), ({"by": None}, "by"), ({"by": "x" * 257}, "by"),
            ({"duration": 0}, "duration"), ({"duration": -1}, "duration"), ({"duration": float("nan")}, "duration"),
            ({"duration": "1h"}, "duration"),
        ],
        ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
    )  # fmt: skip
    async def test_a_wrong_drain_is_refused(self, registry: AgentRegistry, wrong: dict[str, Any], field: str) -> None:
        options: dict[str, Any] = {"reason": "r", **wrong}
        with pytest.raises((InvalidAgentError, ConfigurationError), match=f"^{field}"):
            await registry.drain("a", **options)
        for call in (registry.drain("", reason="r"), registry.resume("")):
            with pytest.raises(InvalidAgentError):
                await call
        assert await registry.drains() == {}

"""A half-moved slot of a cluster: which calls work, wait, or are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from agentic import AgentInfo, AgentNotFoundError, AgentStatus, BackendUnavailableError, RedisRegistry
from agentic.backends.redis.keys import ShardedKeys, id_in
from agentic.testing import wait_until
from tests.support.redis_fleet import PRIMARIES, RedisCluster
from tests.support.stores import LONG_AGO

KEYS = ShardedKeys("agentic")
SLOT = KEYS.slot("agent-0")
MOVING = [agent_id for number in range(2_000) if KEYS.slot(agent_id := f"agent-{number}") == SLOT]
OTHERS = [agent_id for number in range(100) if KEYS.slot(agent_id := f"agent-{number}") != SLOT]
ABSENT = next(agent_id for number in range(2_000) if KEYS.slot(agent_id := f"absent-{number}") == SLOT)


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as made:
        yield made


class HalfMoved:
    """A slot with some keys on a new server and the others still on the old one."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.cluster = cluster
        primaries = cluster.servers[:PRIMARIES]
        self.source = next(each for each in primaries if cluster.ask(each, "CLUSTER", "COUNTKEYSINSLOT", SLOT))
        self.target = next(each for each in primaries if each is not self.source)
        self.moved: set[str] = set()

    def begin(self) -> None:
        keys = self.cluster.begin_move(SLOT, self.source, self.target, len(MOVING) // 2)
        self.moved = {id_in(key) for key in keys}

    def finish(self) -> None:
        self.cluster.finish_move(SLOT, self.source, self.target)


@pytest.fixture
async def slot(shared_cluster: RedisCluster) -> AsyncIterator[HalfMoved]:
    """A slot before its move, with agents in it and elsewhere."""
    async with RedisRegistry(shared_cluster.url, ttl=None) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in MOVING + OTHERS))
        moving = HalfMoved(shared_cluster)
        yield moving
        moving.finish()
        assert await registry.flush() == len(MOVING + OTHERS)


async def test_heartbeats_and_reads_go_on_while_a_slot_is_half_moved(slot: HalfMoved) -> None:
    async with RedisRegistry(slot.cluster.url, ttl=None, timeout=5) as registry:
        slot.begin()
        assert 0 < len(slot.moved) < len(MOVING)
        listed = await registry.list()
        assert sorted(agent.id for agent in listed) == sorted(MOVING + OTHERS)
        latest = max(agent.last_heartbeat or LONG_AGO for agent in listed)
        for _ in range(3):
            assert await registry.heartbeat_many(MOVING + OTHERS) == set()
        found = await asyncio.gather(*map(registry.get, MOVING + OTHERS))
        assert all(agent.last_heartbeat and agent.last_heartbeat > latest for agent in found)
        assert await registry.reap(3600) == []


async def test_writes_to_a_half_moved_slot_wait_until_it_has_moved(slot: HalfMoved) -> None:
    async with RedisRegistry(slot.cluster.url, ttl=None, timeout=20) as registry:
        slot.begin()
        moved, still_there = min(slot.moved), min(set(MOVING) - slot.moved)
        writes = [
            asyncio.ensure_future(registry.update(moved, current_load=1)),
            asyncio.ensure_future(registry.update(still_there, current_load=1)),
            asyncio.ensure_future(registry.register(AgentInfo(MOVING[-1], "again"))),
        ]
        assert (await registry.update(OTHERS[0], current_load=1)).current_load == 1
        done, _ = await asyncio.wait(writes, timeout=0.5)
        assert not done
        slot.finish()
        await asyncio.gather(*writes)
        assert [(await registry.get(agent_id)).current_load for agent_id in (moved, still_there)] == [1, 1]
        assert (await registry.get(MOVING[-1])).name == "again"


async def test_a_write_that_waits_for_a_slot_too_long_says_why_and_was_not_made(slot: HalfMoved) -> None:
    async with RedisRegistry(slot.cluster.url, ttl=None, timeout=3) as registry:
        slot.begin()
        for agent_id in (min(slot.moved), min(set(MOVING) - slot.moved)):
            with pytest.raises(BackendUnavailableError, match="is being moved"):
                await registry.update(agent_id, current_load=1)
        with pytest.raises(BackendUnavailableError, match="is being moved"):
            await registry.heartbeat(ABSENT)
        slot.finish()
        assert all(agent.current_load == 0 for agent in await registry.list())
        with pytest.raises(AgentNotFoundError):
            await registry.heartbeat(ABSENT)


async def test_an_offline_agent_of_a_half_moved_slot_is_stamped_and_comes_back_later(slot: HalfMoved) -> None:
    async with RedisRegistry(slot.cluster.url, ttl=None, timeout=5) as registry:
        offline = [AgentInfo(agent_id, status=AgentStatus.OFFLINE, last_heartbeat=LONG_AGO) for agent_id in MOVING]
        await asyncio.gather(*map(registry.register, offline))
        slot.begin()
        assert await registry.heartbeat_many(MOVING) == set()
        found = await asyncio.gather(*map(registry.get, MOVING))
        assert {agent.status for agent in found} == {AgentStatus.OFFLINE}
        assert all(agent.last_heartbeat and agent.last_heartbeat > LONG_AGO for agent in found)
        slot.finish()
        assert await registry.heartbeat_many(MOVING) == set()
        found = await asyncio.gather(*map(registry.get, MOVING))
        assert {agent.status for agent in found} == {AgentStatus.AVAILABLE}


async def test_heartbeats_go_on_after_a_lost_write_to_a_half_moved_slot(slot: HalfMoved) -> None:
    async with RedisRegistry(slot.cluster.url, ttl=None, timeout=10) as registry:
        slot.begin()
        family = KEYS.agent(MOVING[0]).partition(b":agent:")[0]
        writer = registry.backend.writer
        writer.generations.lost(family, 0)
        beating = asyncio.ensure_future(registry.heartbeat_many(MOVING))
        await wait_until(beating.done, "the heartbeats do not wait for the slot", within=5)
        assert beating.result() == set()
        assert writer.generations.unsettled == {family: 0}
        slot.finish()
        await registry.heartbeat(MOVING[0])
        assert writer.generations.unsettled == {}

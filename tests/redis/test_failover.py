"""Failover and resharding on the tests' own servers: sessions come back, and no list is ever partial."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import pytest
import redis

from agentic import AgentInfo, AgentSession, BackendError, BackendUnavailableError, RedisRegistry
from agentic.backends.redis.client import make_client
from agentic.backends.redis.keys import ShardedKeys
from agentic.backends.redis.url import connection_options
from agentic.clock import system_clock
from agentic.testing import wait_until
from agentic.urls import StoreURL
from tests.support.redis_fleet import PRIMARIES, SERVICE, RedisCluster, SentinelTrio
from tests.support.waiting import wait_intervals

FLEET = 30
BEAT = 1.0  # long enough for a busy machine
TIMEOUT = 1.0
KEYS = ShardedKeys("agentic")


@pytest.fixture
def trio() -> Iterator[SentinelTrio]:
    with SentinelTrio() as made:
        yield made


@pytest.fixture
def cluster(own_redis_cluster: RedisCluster) -> RedisCluster:
    return own_redis_cluster


class Fleet:
    """A registry with sessions on it."""

    def __init__(self, registry: RedisRegistry, sessions: list[AgentSession]) -> None:
        self.registry = registry
        self.sessions = sessions

    def has_beaten_since(self, instant: datetime) -> bool:
        return all(each.healthy and (each.last_beat_at or instant) > instant for each in self.sessions)

    async def is_whole(self) -> bool:
        """Whether every agent is listed; a failed list counts as not."""
        try:
            return len(await self.registry.list()) == len(self.sessions)
        except BackendUnavailableError:
            return False


async def fleet_on(stack: AsyncExitStack, url: str) -> Fleet:
    registry = await stack.enter_async_context(RedisRegistry(url, timeout=TIMEOUT))
    agents = [AgentInfo(f"agent-{number}") for number in range(FLEET)]
    sessions = [await stack.enter_async_context(registry.session(agent, interval=BEAT)) for agent in agents]
    return Fleet(registry, sessions)


@pytest.mark.parametrize("fault", ["command", "killed", "stopped"])
async def test_a_sentinel_failover(trio: SentinelTrio, fault: str) -> None:
    async with AsyncExitStack() as stack:
        fleet = await fleet_on(stack, trio.url)
        assert await fleet.is_whole()
        old = trio.primary_port()
        if fault == "command":
            with redis.Redis(port=trio.sentinels[0][1]) as sentinel:
                sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        elif fault == "killed":
            trio.server_at(old).stop()
        else:
            trio.server_at(old).pause()
        await wait_until(lambda: all_name_another(trio, old), "every sentinel names the other", within=30)
        chosen_at = system_clock()
        new: Any = redis.Redis(port=trio.primary_port())

        async def all_beat_on_the_new_primary() -> bool:
            beaten = fleet.has_beaten_since(chosen_at)
            return beaten and len(new.keys("agentic:agent:*")) == FLEET and await fleet.is_whole()

        await wait_intervals(
            all_beat_on_the_new_primary,
            "every session beats on the new primary, and the list is whole",
            within=2,
            interval=BEAT,
            call=TIMEOUT,
        )
        if fault == "stopped":
            trio.server_at(old).resume()
        new.close()


def all_name_another(trio: SentinelTrio, old: int) -> bool:
    """Whether all sentinels name a primary other than the old one, and it has that role."""
    named = set()
    for _, port in trio.sentinels:
        with redis.Redis(port=port, decode_responses=True) as sentinel:
            found: Any = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            named.add(int(found[1]))
    if len(named) != 1 or old in named:
        return False
    with redis.Redis(port=named.pop()) as new:
        role: Any = new.execute_command("ROLE")
    return bool(role[0] == b"master")


async def test_concurrent_discovery_loses_no_sentinel(trio: SentinelTrio) -> None:
    client: Any = make_client(connection_options(StoreURL.parse(trio.url)) | {"max_connections": 8}, 1)
    known = set(client.sentinels)
    trio.sentinels[0][0].kill()
    await asyncio.gather(*(client.connection_pool.get_master_address() for _ in range(8)))
    assert len(known) == 3
    assert set(client.connection_pool.sentinel_manager.sentinels) == known
    await client.aclose()


@pytest.mark.parametrize("fault", ["killed", "stopped"])
async def test_losing_a_primary_of_a_cluster(cluster: RedisCluster, fault: str) -> None:
    async with AsyncExitStack() as stack:
        fleet = await fleet_on(stack, cluster.url)
        assert await fleet.is_whole()
        victim = cluster.servers[0]
        own = [each for each in fleet.sessions if KEYS.slot(each.agent.id) < 16_384 // 3]
        assert own
        (victim.stop if fault == "killed" else victim.pause)()
        failed = 0
        while not has_taken_over(cluster):
            try:
                listed = len(await fleet.registry.list())
            except BackendUnavailableError:
                failed += 1
            else:
                # The replica may lack writes not yet replicated; the sessions repeat them. A third must never be missing.
                assert listed > FLEET - len(own) if failed else listed == FLEET
            await asyncio.sleep(0.05)
        assert failed
        taken_over_at = system_clock()

        async def all_beat() -> bool:
            return fleet.has_beaten_since(taken_over_at) and await fleet.is_whole()

        await wait_intervals(
            all_beat, "every session beats again, and the list is whole", within=2, interval=BEAT, call=TIMEOUT
        )


def has_taken_over(cluster: RedisCluster) -> bool:
    """Whether the first primary's replica has taken over and every other node knows it."""
    _, *others = cluster.servers
    role = cluster.ask(cluster.servers[PRIMARIES], "ROLE")[0]
    new = cluster.node_id(cluster.servers[PRIMARIES])
    lines = [line for each in others for line in str(cluster.ask(each, "CLUSTER", "NODES")).splitlines()]
    known = all("master" in line for line in lines if line.startswith(new))
    return role == "master" and known and all(cluster.is_ok(each) for each in others)


async def test_a_failed_primary_fails_only_its_own_agents(cluster: RedisCluster) -> None:
    async with RedisRegistry(cluster.url, timeout=1, ttl=None) as registry:
        ids = [f"agent-{number}" for number in range(60)]
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
        cluster.servers[1].pause()
        answers = await asyncio.gather(*(registry.heartbeat(agent_id) for agent_id in ids), return_exceptions=True)
        cluster.servers[1].resume()
        for agent_id, answer in zip(ids, answers, strict=True):
            third = KEYS.slot(agent_id) * 3 // 16_384
            assert isinstance(answer, BackendError) == (third == 1), (agent_id, third, answer)


@pytest.mark.timeout(300)
async def test_a_cluster_resharded_during_list_and_reap(cluster: RedisCluster) -> None:
    async with RedisRegistry(cluster.url, ttl=None) as registry:
        ids = [f"agent-{number}" for number in range(3_000)]
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
        moving = asyncio.create_task(asyncio.to_thread(cluster.move_slots, 300, *cluster.servers[:2]))
        walks = 0
        while not moving.done():
            try:
                listed = [agent.id for agent in await registry.list()]
                assert len(listed) == len(set(listed))
                assert await registry.reap(3600) == []
                walks += 1
            except BackendUnavailableError:
                pass
            await asyncio.gather(*(registry.heartbeat(agent_id) for agent_id in ids[:50]))
        await moving
        assert walks

        async def is_whole() -> bool:
            return {agent.id for agent in await registry.list()} == set(ids)

        await wait_until(is_whole, "every agent is listed once the slots are still")
        assert await registry.heartbeat_many(ids) == set()

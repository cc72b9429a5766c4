"""Requests delivered late: an earlier write never takes effect after a later call got its reply."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import redis.asyncio as aioredis

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentStatus,
    BackendRejectedError,
    BackendUnavailableError,
    RedisRegistry,
)
from agentic.backends.redis.keys import SLOTS, ShardedKeys
from agentic.backends.redis.scripts import SCRIPTS
from agentic.testing import RedisServer, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_fleet import PRIMARIES, RedisCluster
from tests.support.stores import LONG_AGO

Call = Callable[[AgentRegistry], Awaitable[object]]


class Overtaken(NamedTuple):
    """A write delivered late, and a later call on its agent that got its reply before."""

    agent: AgentInfo
    script: str
    late: Call
    later: Call


async def absent(registry: AgentRegistry) -> None:
    with pytest.raises(AgentNotFoundError):
        await registry.get("a")


OVERTAKEN = {
    "update, update": Overtaken(
        AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.update("a", current_load=2)
    ),
    "update, register": Overtaken(
        AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.register(AgentInfo("a"))
    ),
    "update, get": Overtaken(AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.get("a")),
    "update, heartbeat": Overtaken(
        AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.heartbeat("a")
    ),
    "register, deregister": Overtaken(
        AgentInfo("a"), "register", lambda r: r.register(AgentInfo("a", "late")), lambda r: r.deregister("a")
    ),
    "register, get": Overtaken(AgentInfo("b"), "register", lambda r: r.register(AgentInfo("a")), absent),
    "deregister, register": Overtaken(
        AgentInfo("a"), "deregister", lambda r: r.deregister("a"), lambda r: r.register(AgentInfo("a"))
    ),
    "heartbeat of an offline agent, update": Overtaken(
        AgentInfo("a", status=AgentStatus.OFFLINE),
        "heartbeat_slow",
        lambda r: r.heartbeat("a"),
        lambda r: r.update("a", name="still offline"),
    ),
    "reap, heartbeat": Overtaken(
        AgentInfo("a", last_heartbeat=LONG_AGO),
        "reap",
        lambda r: r.reap(60),
        lambda r: r.update("a", status=AgentStatus.BUSY),
    ),
    "flush, register": Overtaken(
        AgentInfo("a"), "deregister", lambda r: r.flush(), lambda r: r.register(AgentInfo("a"))
    ),
}


@pytest.fixture
def server(own_redis_server: RedisServer) -> RedisServer:
    """A server that has the scripts, so that a late request is not refused for a missing script."""
    for script in SCRIPTS.values():
        own_redis_server.admin().script_load(script.text)
    return own_redis_server


def second_of(registry: AgentRegistry) -> AgentRegistry:
    """Return the registry with which the thread for heartbeats makes its calls."""
    second = registry.beat_thread().registry
    assert isinstance(second, AgentRegistry)
    return second


def calls(server: RedisServer) -> int:
    stats: Any = server.admin().info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


def has_run(server: RedisServer, scripts: int) -> Callable[[], bool]:
    """Return a predicate: the server has run this many scripts."""
    return lambda: calls(server) >= scripts


@pytest.mark.parametrize("by_thread", [False, True], ids=["", "of the thread"])
@pytest.mark.parametrize("case", OVERTAKEN.values(), ids=OVERTAKEN)
async def test_a_late_write_does_not_overtake_a_later_call(
    server: RedisServer, case: Overtaken, by_thread: bool
) -> None:
    async with (
        Proxy(server.port) as proxy,
        RedisRegistry(proxy.url, timeout=0.5) as registry,
        second_of(registry) as second,
        RedisRegistry(server.url) as other,
    ):
        await registry.register(case.agent)
        release = proxy.hold_requests(SCRIPTS[case.script].sha.encode())
        with pytest.raises(BackendUnavailableError):
            await case.late(registry)
        proxy.hold_requests(b"nothing more")
        await case.later(second if by_thread else registry)
        before, made = await other.list(), calls(server)
        release()
        await wait_until(lambda: calls(server) > made, "the late request has arrived")
        assert await other.list() == before


@asynccontextmanager
async def through_a_proxy(cluster: RedisCluster) -> AsyncIterator[Proxy]:
    """Put a proxy before the first primary of a cluster: its nodes announce the proxy's port for it."""
    first = cluster.servers[0]
    async with Proxy(first.port) as proxy:
        cluster.ask(first, "CONFIG", "SET", "cluster-announce-bus-port", first.port + 10_000)
        cluster.ask(first, "CONFIG", "SET", "cluster-announce-port", proxy.port)

        def is_known() -> bool:
            return all(str(proxy.port) in str(cluster.ask(each, "CLUSTER", "SLOTS")) for each in cluster.servers)

        await wait_until(is_known, "every node names the proxy's port")
        yield proxy


async def test_a_late_write_in_a_cluster_does_not_overtake_a_later_call(own_redis_cluster: RedisCluster) -> None:
    cluster, slot = own_redis_cluster, ShardedKeys("agentic").slot
    ids = [agent_id for agent_id in map(str, range(100)) if slot(agent_id) < SLOTS // PRIMARIES]
    for script in SCRIPTS.values():
        cluster.ask(cluster.servers[0], "SCRIPT", "LOAD", script.text)
    async with (
        through_a_proxy(cluster) as proxy,
        RedisRegistry(cluster.url, timeout=1) as registry,
        RedisRegistry(cluster.url) as other,
    ):
        for how in ("timed out", "cancelled"):
            await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
            release = proxy.hold_requests(SCRIPTS["update"].sha.encode())
            if how == "timed out":
                updates = (registry.update(agent_id, current_load=1) for agent_id in ids)
                answers = await asyncio.gather(*updates, return_exceptions=True)
                assert all(isinstance(answer, BackendUnavailableError) for answer in answers), answers
            else:
                batch = asyncio.ensure_future(
                    registry.backend.patch([(agent_id, {"current_load": 1}, 0) for agent_id in ids])
                )
                await wait_until(lambda: bool(proxy.held), "the updates are on their way")
                batch.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await batch
            proxy.hold_requests(b"nothing more")
            await asyncio.gather(*(registry.register(AgentInfo(agent_id, current_load=2)) for agent_id in ids))
            made, shards = calls(cluster.servers[0]), len(set(map(slot, ids)))
            release()
            await wait_until(has_run(cluster.servers[0], made + shards), "the late updates have arrived")
            assert [agent.current_load for agent in await other.list()] == [2] * len(ids), how


async def test_an_ended_session_leaves_no_ghost(server: RedisServer) -> None:
    async with (
        Proxy(server.port) as proxy,
        RedisRegistry(proxy.url, timeout=0.5) as registry,
        RedisRegistry(server.url) as other,
    ):
        release = proxy.hold_requests(b'"name":"ghost"')
        session = registry.session(AgentInfo("a", name="ghost"))
        with pytest.raises(BackendUnavailableError):
            await session.open()
        proxy.hold_requests(b"nothing more")
        await absent(registry)
        made = calls(server)
        release()
        await wait_until(lambda: calls(server) > made, "the late registration has arrived")
        assert await other.list() == []


async def test_a_closed_registry_writes_nothing_more(server: RedisServer) -> None:
    """After a process has closed its registry, a registration delivered late adds no agent."""
    async with Proxy(server.port) as proxy, RedisRegistry(server.url) as other:
        registry = RedisRegistry(proxy.url, timeout=0.5)
        await registry.open()
        release = proxy.hold_requests(b'"name":"ghost"')
        registering = asyncio.create_task(registry.register(AgentInfo("a", name="ghost")))
        await wait_until(lambda: bool(proxy.held), "the registration is on its way")
        proxy.hold_requests(b"nothing more")
        await registry.aclose()
        with pytest.raises(BackendUnavailableError):
            await registering
        made = calls(server)
        release()
        await wait_until(lambda: calls(server) > made, "the late registration has arrived")
        assert await other.list() == []


async def test_a_retried_heartbeat_is_not_followed_by_the_first_one(server: RedisServer) -> None:
    """Heartbeats are retried after a lost connection, also those that do more than stamp."""
    async with (
        Proxy(server.port) as proxy,
        RedisRegistry(proxy.url, timeout=2) as registry,
        RedisRegistry(server.url) as other,
    ):
        await registry.register(AgentInfo("a", status=AgentStatus.OFFLINE))
        release = proxy.hold_requests(SCRIPTS["heartbeat_slow"].sha.encode())
        beating = asyncio.ensure_future(registry.heartbeat("a"))
        await wait_until(lambda: bool(proxy.held), "the heartbeat is on its way")
        proxy.hold_requests(b"nothing more")
        proxy.reset_clients()
        await beating
        assert (await registry.update("a", status=AgentStatus.OFFLINE)).status is AgentStatus.OFFLINE
        made = calls(server)
        release()
        await wait_until(has_run(server, made + 1), "the first heartbeat has arrived")
        assert (await other.get("a")).status is AgentStatus.OFFLINE


async def test_a_users_client_does_not_retry_a_write(server: RedisServer) -> None:
    """A copy of the lost write has the same generation, so it could be applied after the reply to a later write."""
    async with (
        Proxy(server.port) as proxy,
        aioredis.Redis(port=proxy.port) as client,
        RedisRegistry(client=client, timeout=2) as registry,
    ):
        await registry.register(AgentInfo("a"))
        release = proxy.hold_requests(SCRIPTS["update"].sha.encode())
        lost = asyncio.ensure_future(registry.update("a", current_load=1))
        await wait_until(lambda: bool(proxy.held), "the update is on its way")
        proxy.hold_requests(b"nothing more")
        proxy.reset_clients()
        with pytest.raises(BackendUnavailableError):
            await lost
        assert (await registry.update("a", current_load=2)).current_load == 2
        made = calls(server)
        release()
        await wait_until(has_run(server, made + 1), "the lost update has arrived")
        assert (await registry.get("a")).current_load == 2


async def test_a_refused_write_is_sent_again(server: RedisServer) -> None:
    """A write to another agent, sent before a loss is noticed and delivered after it, is refused, then applied."""
    async with Proxy(server.port) as proxy, RedisRegistry(proxy.url, timeout=2) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in "ab"))
        release = proxy.hold_requests(SCRIPTS["update"].sha.encode())
        held = asyncio.create_task(registry.update("b", current_load=1))
        await wait_until(lambda: bool(proxy.held), "the update of b is on its way")
        proxy.hold_requests(b"nothing more")
        lost = asyncio.create_task(registry.deregister("a"))
        proxy.answers_to_lose = 1
        with pytest.raises(BackendUnavailableError):
            await lost
        await registry.register(AgentInfo("a"))
        release()
        assert (await held).current_load == 1
        assert (await registry.get("b")).current_load == 1


async def lose_a_write(proxy: Proxy, registry: RedisRegistry) -> None:
    """Lose the reply to a write, so that the registry's generation rises."""
    proxy.answers_to_lose = 1
    with pytest.raises(BackendUnavailableError):
        await registry.update("a", current_load=1)


async def test_a_registry_stores_agents_and_one_counter_until_it_loses_a_write(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, RedisRegistry(proxy.url) as registry:
        await registry.register(AgentInfo("a"))
        await registry.heartbeat("a")
        assert set(server.admin().keys()) == {b"agentic:agent:a", b"agentic:incarnation"}
        await lose_a_write(proxy, registry)
        await registry.update("a", current_load=2)
        (key,) = server.admin().keys("agentic:writer:*")
        assert 86_000 < server.admin().ttl(key) <= 86_400
        assert await registry.flush() == 1
        assert set(server.admin().keys()) == {key, b"agentic:incarnation"}


async def test_agents_can_deregister_with_full_memory_after_a_lost_write(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, RedisRegistry(proxy.url) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in "ab"))
        await lose_a_write(proxy, registry)
        server.admin().config_set("maxmemory", 1)
        with pytest.raises(BackendRejectedError, match="raise maxmemory"):
            await registry.register(AgentInfo("c"))
        await registry.deregister("a")
        with pytest.raises(BackendRejectedError, match="raise maxmemory"):
            await registry.register(AgentInfo("c"))
        await registry.heartbeat("b")
        assert await registry.flush() == 1


async def test_a_registry_opened_again_in_a_forked_process_goes_on(server: RedisServer) -> None:
    """Both processes then write under one name, and each must notice that the other has raised the generation."""
    async with (
        Proxy(server.port) as proxy,
        RedisRegistry(proxy.url, timeout=2) as parent,
        RedisRegistry(server.url, timeout=2) as child,
    ):
        after_fork, before_fork = child.backend.writer, parent.backend.writer
        after_fork.generations.writer = before_fork.generations.writer
        await child.register(AgentInfo("a"))
        for _ in range(3):
            await lose_a_write(proxy, parent)
        await parent.register(AgentInfo("a"))
        assert (await child.update("a", current_load=2)).current_load == 2
        assert (await parent.update("a", current_load=3)).current_load == 3


async def test_a_batch_of_large_records_goes_in_requests_of_a_megabyte(server: RedisServer) -> None:
    server.admin().config_set("client-query-buffer-limit", 1_500_000)
    async with RedisRegistry(server.url, timeout=60) as registry:
        agents = [AgentInfo(f"agent-{number}", metadata={"text": "x" * 60_000}) for number in range(256)]
        made = calls(server)
        await asyncio.gather(*map(registry.register, agents))
        assert 15 <= calls(server) - made <= 20
        await asyncio.gather(*(registry.update(agent.id, metadata={"text": "y" * 60_000}) for agent in agents))
        assert {agent.metadata["text"] for agent in await registry.list()} == {"y" * 60_000}

"""Redis servers that must not be trusted: out of sync, of another kind, or no longer primary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
from redis.cluster import LoadBalancingStrategy
from redis.crc import key_slot

from agentic import (
    AgentInfo,
    BackendRejectedError,
    BackendUnavailableError,
    ConfigurationError,
    RedisRegistry,
)
from agentic.backends.redis import server_info as redis_server_info
from agentic.backends.redis.client import make_client
from agentic.backends.redis.cluster import Cluster
from agentic.backends.redis.keys import ShardedKeys
from agentic.backends.redis.topology import Topology
from agentic.backends.redis.url import connection_options
from agentic.testing import RedisServer, wait_until
from agentic.urls import StoreURL
from tests.support.proxy import Proxy
from tests.support.redis_fleet import PRIMARIES, RedisCluster, SentinelTrio

NOBODY = 1  # a port without a listener


async def scan(registry: RedisRegistry) -> list[AgentInfo]:
    return [agent async for agent in registry.scan()]


READS: dict[str, Callable[[RedisRegistry], Awaitable[object]]] = {
    "get": lambda registry: registry.get("a"),
    "list": lambda registry: registry.list(),
    "scan": scan,
    "reap": lambda registry: registry.reap(3600),
    "flush": lambda registry: registry.flush(),
    "store_time": lambda registry: registry.store_time(),
}

ON_AN_ABSENT_AGENT: dict[str, Callable[[RedisRegistry], Awaitable[object]]] = {
    "get": lambda registry: registry.get("absent"),
    "heartbeat": lambda registry: registry.heartbeat("absent"),
    "heartbeat_many": lambda registry: registry.heartbeat_many(["absent"]),
    "update": lambda registry: registry.update("absent", name="x"),
    "deregister": lambda registry: registry.deregister("absent"),
}


@pytest.fixture
def primary() -> Iterator[RedisServer]:
    with RedisServer("--repl-diskless-sync-delay", "0") as server:
        yield server


def follow(server: RedisServer, port: int) -> None:
    server.admin().execute_command("REPLICAOF", "127.0.0.1", port)


async def until_in_sync(server: RedisServer) -> None:
    await wait_until(lambda: server.admin().info("replication")["master_link_status"] == "up", "the replica is in sync")


# --- replicas ---


async def test_a_replica_in_sync_serves_reads_and_no_writes(
    primary: RedisServer, own_redis_server: RedisServer
) -> None:
    async with RedisRegistry(primary.url) as registry:
        await registry.register(AgentInfo("a"))
    follow(own_redis_server, primary.port)
    await until_in_sync(own_redis_server)
    async with RedisRegistry(own_redis_server.url) as registry:
        assert [agent.id for agent in await registry.list()] == ["a"]
        assert (await registry.get("a")).id == "a"
        assert await registry.reap(3600) == []
        await registry.store_time()
        for call in (registry.heartbeat("a"), registry.register(AgentInfo("b")), registry.reap(0)):
            with pytest.raises(BackendUnavailableError, match="the server is a replica"):
                await call


@pytest.mark.parametrize("call", READS)
async def test_a_demoted_primary_that_is_cut_off_is_not_read(own_redis_server: RedisServer, call: str) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
        await READS[call](registry)
        follow(own_redis_server, NOBODY)
        with pytest.raises(BackendUnavailableError, match="not in sync"):
            await READS[call](registry)
        own_redis_server.admin().execute_command("REPLICAOF", "NO", "ONE")
        await registry.list()


@pytest.mark.parametrize("call", ON_AN_ABSENT_AGENT)
async def test_a_demoted_primary_does_not_report_an_agent_as_absent(own_redis_server: RedisServer, call: str) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        follow(own_redis_server, NOBODY)
        with pytest.raises(BackendUnavailableError, match="replica"):
            await ON_AN_ABSENT_AGENT[call](registry)


@pytest.mark.parametrize("call", ["heartbeat", "update", "deregister", "register"])
async def test_a_demoted_primary_does_not_tell_a_start_that_it_was_replaced(
    own_redis_server: RedisServer, call: str
) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        first = await registry.register(AgentInfo("a"))
        second = await registry.register(AgentInfo("a"))
        follow(own_redis_server, NOBODY)
        for incarnation in (first.incarnation, second.incarnation + 1):
            calls: dict[str, Any] = {
                "heartbeat": lambda: registry.heartbeat("a", incarnation=incarnation),  # noqa: B023  called below
                "update": lambda: registry.update("a", incarnation=incarnation, name="n"),  # noqa: B023
                "deregister": lambda: registry.deregister("a", incarnation=incarnation),  # noqa: B023
                "register": lambda: registry.register(AgentInfo("a"), incarnation=incarnation),  # noqa: B023
            }
            with pytest.raises(BackendUnavailableError, match="replica"):
                await calls[call]()


async def test_a_replica_before_its_first_sync_cannot_be_opened(own_redis_server: RedisServer) -> None:
    follow(own_redis_server, NOBODY)
    with pytest.raises(BackendUnavailableError, match="not in sync"):
        await RedisRegistry(own_redis_server.url).open()


async def test_a_replica_that_hears_nothing_from_its_primary_is_not_read(
    primary: RedisServer, own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(own_redis_server, primary.port)
    await until_in_sync(own_redis_server)
    client = own_redis_server.admin()
    async with RedisRegistry(own_redis_server.url) as registry:
        monkeypatch.setattr(redis_server_info, "MAX_SILENCE", 0)
        primary.pause()

        async def refuses() -> bool:
            try:
                await registry.list()
            except BackendUnavailableError as error:
                return "not in sync" in str(error)
            return False

        await wait_until(refuses, "reads are refused, though the link counts as up")
        assert client.info("replication")["master_link_status"] == "up"
        primary.resume()


async def test_reading_a_replica_requires_the_right_to_check_its_sync(
    primary: RedisServer, own_redis_server: RedisServer
) -> None:
    follow(own_redis_server, primary.port)
    await until_in_sync(own_redis_server)
    own_redis_server.admin().execute_command("ACL", "SETUSER", "weak", "on", ">p", "~*", "+@all", "-info")
    with pytest.raises(BackendRejectedError, match=r"grant \+info"):
        await RedisRegistry(own_redis_server.url.replace("://", "://weak:p@")).open()


async def test_reads_find_the_new_primary_behind_the_same_name(
    primary: RedisServer, own_redis_server: RedisServer
) -> None:
    async with Proxy(own_redis_server.port) as name, RedisRegistry(name.url) as registry:
        await asyncio.gather(*(registry.list() for _ in range(8)))
        follow(own_redis_server, NOBODY)
        name.target = primary.port
        async with RedisRegistry(primary.url) as elsewhere:
            await elsewhere.register(AgentInfo("a"))
        for _ in range(8):
            assert [agent.id for agent in await registry.list()] == ["a"]
        await registry.heartbeat("a")


async def test_a_primary_that_sentinels_name_is_not_read_once_it_is_a_replica(sentinel_trio: SentinelTrio) -> None:
    trio = sentinel_trio
    port = next(server.port for server in trio.servers if server.port != trio.primary_port())
    options = {"sentinels": [("127.0.0.1", port) for _, port in trio.sentinels], "service": "fleet", "db": 0}
    client: Any = make_client(options | {"max_connections": 4}, 5)

    async def wrong() -> tuple[str, int]:
        return "127.0.0.1", port

    client.connection_pool.sentinel_manager.discover_master = lambda _: wrong()  # like sentinels with outdated state
    with pytest.raises(redis_server_info.NotInSync, match="is a replica"):
        await client.ping()
    await client.aclose()


# --- servers of another kind ---


async def test_a_cluster_node_and_a_sentinel_are_refused_as_a_single_server(
    redis_cluster: RedisCluster, sentinel_trio: SentinelTrio
) -> None:
    sentinel = sentinel_trio.sentinels[0][1]
    for port, hint in (
        (redis_cluster.servers[0].port, r"redis\+cluster://"),
        (sentinel, r"redis\+sentinel://.*service"),
    ):
        with pytest.raises(BackendRejectedError, match=hint):
            await RedisRegistry(f"redis://127.0.0.1:{port}").open()
        client = aioredis.Redis(port=port)
        with pytest.raises(BackendRejectedError, match=hint):
            await RedisRegistry(client=client).open()
        await client.aclose()


async def test_a_single_server_is_refused_as_a_sentinel_or_a_cluster(redis_url: str) -> None:
    place = redis_url.removeprefix("redis://").removesuffix("/0")
    for url in (f"redis+sentinel://{place}/fleet", f"redis+cluster://{place}"):
        with pytest.raises(BackendRejectedError, match="a single server: use redis://"):
            await RedisRegistry(url).open()


async def test_a_later_connection_to_a_server_of_another_kind_is_refused(
    own_redis_server: RedisServer, redis_cluster: RedisCluster
) -> None:
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url) as registry:
        await registry.register(AgentInfo("a"))
        proxy.target = redis_cluster.servers[0].port
        proxy.reset()
        for call in (registry.register(AgentInfo("b")), registry.list(), registry.heartbeat("a")):
            with pytest.raises(BackendRejectedError, match=r"redis\+cluster://"):
                await call


async def test_a_client_of_a_cluster_that_reads_from_replicas_is_refused(redis_cluster: RedisCluster) -> None:
    strategy = LoadBalancingStrategy.ROUND_ROBIN
    port = redis_cluster.servers[0].port
    client = aioredis.RedisCluster(host="127.0.0.1", port=port, load_balancing_strategy=strategy)
    with pytest.raises(ConfigurationError, match="must not read from replicas"):
        RedisRegistry(client=client)


# --- nodes of a cluster that no longer own slots ---


@pytest.fixture
async def in_cluster(own_redis_cluster: RedisCluster) -> AsyncIterator[RedisRegistry]:
    async with RedisRegistry(own_redis_cluster.url, ttl=None, timeout=2) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(f"agent-{n}")) for n in range(100)))
        yield registry


@pytest.fixture
async def nodes(own_redis_cluster: RedisCluster) -> AsyncIterator[Cluster]:
    """The nodes of the cluster, as a registry sees them."""
    options = connection_options(StoreURL.parse(own_redis_cluster.url)) | {"max_connections": 2}
    topology = make_client(options, 2)
    assert isinstance(topology, Topology)
    cluster = Cluster(topology, 2, 2, ShardedKeys("agentic").probes())
    await cluster.ping()
    yield cluster
    await cluster.aclose()


async def scan_node(nodes: Cluster, port: int) -> bool:
    """Send one SCAN to one node; return whether the layout has changed."""
    layout = nodes.layout()
    await nodes.page(("127.0.0.1", port), [], (b"SCAN", 0))
    return nodes.layout() != layout


async def test_a_node_that_became_a_replica_is_not_trusted(
    own_redis_cluster: RedisCluster, in_cluster: RedisRegistry, nodes: Cluster
) -> None:
    first, replica = own_redis_cluster.servers[0], own_redis_cluster.servers[PRIMARIES]
    assert not await scan_node(nodes, first.port)

    def has_taken_over() -> bool:
        if own_redis_cluster.ask(replica, "ROLE")[0] == "slave":
            with suppress(redis.ResponseError):  # a failover is in progress
                own_redis_cluster.ask(replica, "CLUSTER", "FAILOVER")
        return bool(own_redis_cluster.ask(first, "ROLE")[0] == "slave")

    await wait_until(has_taken_over, "it is a replica")
    with suppress(BackendUnavailableError):  # until every node knows about it
        assert await scan_node(nodes, first.port)  # so that a scan starts again

    async def is_whole() -> bool:
        try:
            assert len(await in_cluster.list()) == 100
        except BackendUnavailableError:
            return False
        return True

    await wait_until(is_whole, "the list is whole again, and was never shorter")


async def test_slots_that_a_node_has_lost_are_noticed_while_it_is_scanned(
    own_redis_cluster: RedisCluster, in_cluster: RedisRegistry, nodes: Cluster
) -> None:
    first, second = own_redis_cluster.servers[:2]
    own_redis_cluster.ask(first, "FLUSHALL")
    slot = key_slot(ShardedKeys("agentic").probes()[0])
    assert not await scan_node(nodes, first.port)
    for server in own_redis_cluster.servers[:PRIMARIES]:
        own_redis_cluster.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", own_redis_cluster.node_id(second))
    try:
        is_noticed = await scan_node(nodes, first.port)
    except BackendUnavailableError as error:  # The nodes do not agree on the owner of the slot yet.
        is_noticed = "holds other slots than before" in str(error)
    assert is_noticed


async def test_a_primary_cut_off_from_the_others_is_not_read(
    own_redis_cluster: RedisCluster, in_cluster: RedisRegistry, nodes: Cluster
) -> None:
    first, *others = own_redis_cluster.servers
    for server in others:
        server.pause()
    await wait_until(lambda: not own_redis_cluster.is_ok(first), "it finds the cluster down")
    with pytest.raises(BackendUnavailableError, match="CLUSTERDOWN|cluster is down"):
        await scan_node(nodes, first.port)
    for call in READS.values():
        with pytest.raises(BackendUnavailableError):
            await call(in_cluster)
    for server in others:
        server.resume()

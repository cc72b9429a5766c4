"""Connections to Redis: opening deadlines, dead connections, user-provided pools, and unexpected states."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis.asyncio as aioredis
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    BackendError,
    BackendUnavailableError,
    RedisRegistry,
)
from agentic.backends.redis.keys import ShardedKeys
from agentic.backends.redis.scan import LONGEST_STEP, PAGE_SIZE, ServerScan
from agentic.backends.redis.servers import Scanned
from agentic.testing import RedisServer, wait_until
from tests.support.proxy import Proxy
from tests.support.redis_fleet import SERVICE, RedisCluster, SentinelTrio
from tests.support.stores import RedisStore

TIMEOUT = 0.5
HANGS = 10 * TIMEOUT
"""Seconds after which a call counts as hung, also on a slow machine."""


# --- opening and closing end in time and leave nothing open ---


@pytest.mark.parametrize("answers", range(4))
async def test_opening_times_out_wherever_the_server_stops_answering(
    own_redis_server: RedisServer, answers: int
) -> None:
    async with Proxy(own_redis_server.port) as proxy:
        proxy.answers_to_pass = answers
        registry = RedisRegistry(proxy.url, timeout=TIMEOUT)
        async with asyncio.timeout(HANGS):
            if answers < 3:  # replies to the handshake, the ping and INFO
                with pytest.raises(BackendUnavailableError, match="no answer within 0.5 s"):
                    await registry.open()
            else:
                await registry.open()
                await registry.aclose()
        await wait_until(lambda: proxy.connections == 0, "no connection is left")


@pytest.mark.parametrize("answers", range(3))
async def test_opening_times_out_where_a_sentinel_stops_answering(sentinel_trio: SentinelTrio, answers: int) -> None:
    async with Proxy(sentinel_trio.sentinels[0][1]) as proxy:
        proxy.answers_to_pass = answers
        registry = RedisRegistry(f"redis+sentinel://127.0.0.1:{proxy.port}/{SERVICE}", timeout=TIMEOUT)
        async with asyncio.timeout(HANGS):
            if answers < 2:  # replies to HELLO and SENTINEL MASTERS
                with pytest.raises(BackendUnavailableError):
                    await registry.open()
            else:
                await registry.open()
                await registry.aclose()
        await wait_until(lambda: proxy.connections == 0, "no connection is left")


async def test_opening_a_cluster_with_hung_nodes_ends_in_time(own_redis_cluster: RedisCluster) -> None:
    for paused in range(1, 4):
        own_redis_cluster.servers[paused - 1].pause()
        async with asyncio.timeout(HANGS):
            with pytest.raises(BackendUnavailableError):
                await RedisRegistry(own_redis_cluster.url, timeout=TIMEOUT).open()
    for server in own_redis_cluster.servers[:3]:
        server.resume()


@pytest.fixture(params=["single", "sentinel", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    match request.param:
        case "single":
            return str(request.getfixturevalue("redis_url"))
        case "sentinel":
            return str(request.getfixturevalue("sentinel_trio").url)
        case _:
            return str(request.getfixturevalue("redis_cluster").url)


def open_sockets() -> int:
    """The number of open sockets of this process."""
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            count += str(each.readlink()).startswith("socket:")
    return count


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts this process's sockets as Linux shows them")
@pytest.mark.parametrize("how", ["task", "scope"])
async def test_a_cancelled_opening_leaves_no_connection(url: str, how: str) -> None:
    before = open_sockets()
    for turns in range(0, 60, 2):
        registry = RedisRegistry(url)
        scope = anyio.CancelScope()

        async def opened(registry: RedisRegistry = registry, scope: anyio.CancelScope = scope) -> None:
            with scope:
                async with registry:
                    pass

        task = asyncio.create_task(opened())
        for _ in range(turns):
            await asyncio.sleep(0)
        if how == "task":
            task.cancel()
        else:
            scope.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await wait_until(lambda: open_sockets() <= before, "no socket is left")


# --- connections that died while idle ---


async def test_a_connection_reset_while_it_was_idle_fails_no_write(own_redis_server: RedisServer) -> None:
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url) as registry:
        await registry.register(AgentInfo("a"))
        for load in range(5):
            proxy.reset()
            await wait_until(lambda: proxy.connections == 0, "it is reset")
            await registry.update("a", current_load=load)
        for _ in range(5):
            proxy.reset()
            await wait_until(lambda: proxy.connections == 0, "it is reset")
            await registry.register(AgentInfo("a"))


async def test_a_connection_reset_while_the_event_loop_was_blocked_fails_no_write(
    own_redis_server: RedisServer,
) -> None:
    client = own_redis_server.admin()
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
        for load in range(5):
            client.client_kill_filter(_type="normal", skipme=True)
            time.sleep(0.02)  # noqa: ASYNC251  blocks the loop on purpose
            await registry.update("a", current_load=load)


async def test_a_clusters_connections_closed_while_they_were_idle_fail_no_write(redis_cluster: RedisCluster) -> None:
    async with RedisRegistry(redis_cluster.url, prefix="idle") as registry:
        ids = [f"agent-{number}" for number in range(50)]
        for _ in range(3):
            await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
            for server in redis_cluster.servers[:3]:
                redis_cluster.ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.gather(*(registry.deregister(agent_id) for agent_id in ids))


async def test_scans_of_a_cluster_reuse_connections(redis_cluster: RedisCluster) -> None:
    def made() -> int:
        found = (redis_cluster.ask(each, "INFO", "stats")["total_connections_received"] for each in servers)
        return sum(map(int, found))

    servers = redis_cluster.servers
    async with RedisRegistry(redis_cluster.url, prefix="walks") as registry:
        await registry.register(AgentInfo("a"))
        before = made()
        for _ in range(30):
            await registry.list()
        # At most two per node, for pages and for the slots, and the one that counts.
        assert made() - before <= 3 * len(servers)


async def test_nodes_that_omit_their_host_are_found(own_redis_cluster: RedisCluster) -> None:
    for server in own_redis_cluster.servers:
        own_redis_cluster.ask(server, "CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint")
    async with RedisRegistry(own_redis_cluster.url) as registry:
        await everything(registry)
        source, target, *_ = own_redis_cluster.servers
        slot = min(map(key_slot, ShardedKeys("agentic").probes()))
        own_redis_cluster.begin_move(slot, source, target)
        own_redis_cluster.finish_move(slot, source, target)
        await everything(registry)


async def test_many_connections_that_died_silently_cost_one_timeout(own_redis_server: RedisServer) -> None:
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url, timeout=3) as registry:
        await registry.register(AgentInfo("a"))
        own_redis_server.pause()
        walks = [asyncio.create_task(registry.list()) for _ in range(10)]
        await wait_until(lambda: proxy.connections >= 10, "each has a connection")
        own_redis_server.resume()
        await asyncio.gather(*walks)
        proxy.swallow()
        with pytest.raises(BackendUnavailableError):
            await registry.heartbeat("a")
        # Concurrently, so that every connection is needed.
        await asyncio.gather(*(registry.list() for _ in range(10)))


# --- user-provided clients and pools ---


async def everything(registry: RedisRegistry) -> None:
    ids = [f"agent-{number}" for number in range(100)]
    await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
    calls: list[Awaitable[object]] = []
    for agent_id in ids:
        calls += [registry.heartbeat(agent_id), registry.get(agent_id), registry.update(agent_id, current_load=1)]
    await asyncio.gather(*calls, *(registry.list() for _ in range(5)), registry.reap(3600))
    assert await registry.flush() == len(ids)


@pytest.mark.parametrize("connections", [1, 2, 4])
async def test_a_pool_smaller_than_the_registrys_own_limit_fails_no_call(
    redis_store: RedisStore, connections: int
) -> None:
    client = aioredis.Redis.from_url(redis_store.url, max_connections=connections)
    async with RedisRegistry(client=client, prefix=redis_store.prefix) as registry:
        await everything(registry)
    await client.aclose()


@pytest.mark.filterwarnings("ignore:.*lib_name:DeprecationWarning")  # redis-py 7.2 warns about its own call.
async def test_a_small_pool_of_a_cluster_fails_no_call(redis_cluster: RedisCluster) -> None:
    client = aioredis.RedisCluster(host="127.0.0.1", port=redis_cluster.servers[0].port, max_connections=1)
    before = open_sockets()
    async with RedisRegistry(client=client, prefix="small") as registry:
        await everything(registry)
    assert open_sockets() == before
    assert await client.ping()
    await client.aclose()


async def test_calls_wait_for_an_exhausted_pool(redis_store: RedisStore) -> None:
    client = aioredis.Redis.from_url(redis_store.url, max_connections=2)
    pool: Any = client.connection_pool
    async with RedisRegistry(client=client, prefix=redis_store.prefix) as registry:
        taken = [await pool.get_connection() for _ in range(2)]
        with pytest.raises(RedisConnectionError, match="^Too many connections"):
            await client.ping()
        calls = asyncio.gather(registry.register(AgentInfo("a")), registry.list(), return_exceptions=True)
        await asyncio.sleep(0.05)
        assert not calls.done()
        for connection in taken:
            await pool.release(connection)
        assert not [answer for answer in await calls if isinstance(answer, BaseException)]
        await registry.flush()
    await client.aclose()


CALLS: dict[str, Callable[[RedisRegistry], Awaitable[object]]] = {
    "heartbeat": lambda registry: registry.heartbeat("a"),
    "get": lambda registry: registry.get("a"),
    "list": lambda registry: registry.list(),
    "update": lambda registry: registry.update("a", current_load=1),
    "register": lambda registry: registry.register(AgentInfo("a")),
    "deregister": lambda registry: registry.deregister("absent"),
    "store_time": lambda registry: registry.store_time(),
}


@pytest.mark.parametrize("single", [True, False], ids=["single connection", "pool"])
@pytest.mark.parametrize("command", ["MULTI", "SUBSCRIBE x", "CLIENT REPLY OFF", "ECHO out-of-step", "QUIT", "RESET"])
async def test_a_connection_in_an_unexpected_state_raises_library_errors_and_is_replaced(
    own_redis_server: RedisServer, command: str, single: bool
) -> None:
    options: Any = {"port": own_redis_server.port, "protocol": 2, "single_connection_client": single}
    client = aioredis.Redis(**options)
    await client.ping()
    pool: Any = client.connection_pool
    async with RedisRegistry(client=client, timeout=TIMEOUT) as registry:
        await registry.register(AgentInfo("a"))
        for name, call in CALLS.items():
            connection: Any = client.connection or await pool.get_connection()
            with suppress(RedisConnectionError):  # still closed after the last QUIT
                await connection.send_command(*command.split())
            if not single:
                await pool.release(connection)
            with suppress(BackendError, AgentNotFoundError):
                await asyncio.wait_for(call(registry), HANGS)
            if command != "SUBSCRIBE x":  # for which the server rejects each call with an error

                async def works() -> bool:
                    try:
                        await registry.list()
                        return (await registry.get("a")).id == "a"
                    except BackendError:
                        return False

                await wait_until(works, f"the registry works again after {name}")
    await client.aclose()


# --- a database full of foreign keys ---


async def test_a_scan_among_many_foreign_keys_takes_few_short_steps() -> None:
    foreign = 200_000
    with RedisServer("--enable-debug-command", "yes") as server:
        client = server.admin()
        client.execute_command("DEBUG", "POPULATE", foreign, "cache", 5)
        async with RedisRegistry(server.url) as registry:
            await asyncio.gather(*(registry.register(AgentInfo(f"agent-{number}")) for number in range(3)))
            client.config_resetstat()
            client.config_set("slowlog-log-slower-than", 0)
            client.slowlog_reset()
            assert len(await registry.list()) == 3
            scans = client.info("commandstats")["cmdstat_scan"]["calls"]
            assert scans < foreign / LONGEST_STEP + 10
            steps = [int(each["command"].split()[-1]) for each in client.slowlog_get(128) if b"SCAN" in each["command"]]
            assert max(steps) == LONGEST_STEP


def test_a_step_that_finds_more_than_a_page_of_keys_is_read_in_pages() -> None:
    keys = [b"%d" % number for number in range(6 * PAGE_SIZE)]
    scan = ServerScan(None, None, b"*", PAGE_SIZE)
    scan.scanned(Scanned(b"run", 7, keys), keys)
    pages = []
    while scan.next_step() is None:
        pages.append(scan.take())
    assert [len(page) for page in pages] == [PAGE_SIZE] * 6
    assert [key for page in pages for key in page] == keys
    assert scan.next_step()[:2] == ("SCAN", 7)  # type: ignore[index]

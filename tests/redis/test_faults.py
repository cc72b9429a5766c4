"""Faults of Redis, each produced for real: how calls end, and that no guarantee is broken."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, cast

import pytest
import redis
import redis.asyncio as aioredis

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentStatus,
    BackendRejectedError,
    BackendUnavailableError,
    CorruptRecordError,
    Reaper,
    RedisRegistry,
    RegistryError,
)
from agentic.testing import RedisServer, wait_until
from tests.support.proxy import Proxy
from tests.support.stores import LONG_AGO, RedisStore
from tests.support.waiting import is_there, wait_intervals

BEAT = 1.0  # long enough for a busy machine


# --- a server that hangs, dies, or loses its data ---


def holds_all(server: RedisServer, *ids: str) -> Callable[[], bool]:
    """Return a predicate: the server has a record of each of these agents."""
    client = server.admin()
    return lambda: client.exists(*(f"agentic:agent:{agent_id}" for agent_id in ids)) == len(ids)


@pytest.mark.parametrize("seconds", [10.0])
async def test_a_server_stopped_for_ten_seconds(own_redis_server: RedisServer, seconds: float) -> None:
    reaped: list[str] = []
    async with (
        RedisRegistry(own_redis_server.url, timeout=1) as registry,
        RedisRegistry(own_redis_server.url, timeout=60) as other,
        registry.session(AgentInfo("a"), interval=BEAT) as session,
        Reaper(registry, ttl=3, interval=0.5, on_reaped=reaped.extend),
    ):
        await registry.register(AgentInfo("removed"))
        await registry.heartbeat("removed")
        await other.deregister("removed")  # so that the server has the scripts, and each call is one message
        await registry.register(AgentInfo("removed"))
        own_redis_server.pause()
        stopped_at = asyncio.get_running_loop().time()
        # It waits in the server's buffers, followed by a heartbeat whose caller has long timed out when it arrives.
        removal = asyncio.create_task(other.deregister("removed"))
        for _ in range(20):
            await asyncio.sleep(0)  # so that it is sent
        with pytest.raises(BackendUnavailableError):
            await registry.heartbeat("removed")
        await wait_until(lambda: not session.healthy, "the session notices")
        with pytest.raises(BackendUnavailableError):
            await registry.list()
        await asyncio.sleep(stopped_at + seconds - asyncio.get_running_loop().time())
        own_redis_server.resume()
        await wait_intervals(lambda: session.healthy, "the session is back", within=2, interval=BEAT, call=1)
        await wait_until(is_there(registry), "so is its agent")
        await removal
        sweeps = asyncio.get_running_loop().time() + 1.5
        while asyncio.get_running_loop().time() < sweeps:
            assert [(agent.id, agent.status) for agent in await registry.list()] == [("a", AgentStatus.AVAILABLE)]
            await asyncio.sleep(0.05)
    assert reaped == []


async def test_a_server_killed_and_restarted_empty(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=1) as registry:
        async with registry.session(AgentInfo("a", name="first"), interval=BEAT) as session:
            await session.update(current_load=3)
            own_redis_server.stop()
            await wait_until(lambda: not session.healthy, "the session notices")
            own_redis_server.start()
            await wait_intervals(
                holds_all(own_redis_server, "a"), "the session has registered again", within=2, interval=BEAT
            )
            found = await registry.get("a")
            assert (found.name, found.current_load) == ("first", 3)


async def test_a_server_killed_and_restarted_with_its_data() -> None:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        async with RedisRegistry(server.url, timeout=1) as registry:
            await registry.register(AgentInfo("a", name="kept"))
            await registry.update("a", current_load=5)
            server.stop()
            with pytest.raises(BackendUnavailableError):
                await registry.get("a")
            server.start()
            await wait_until(is_there(registry), "the server has read its data")
            found = await registry.get("a")
            assert (found.name, found.current_load) == ("kept", 5)
            await registry.heartbeat("a")


async def test_flushall_brings_every_session_back_within_an_interval(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=1) as registry:
        async with registry.session(AgentInfo("a"), interval=2), registry.session(AgentInfo("b"), interval=2):
            own_redis_server.admin().flushall()
            # An interval, plus the calls that find the agent missing and register it again.
            back = holds_all(own_redis_server, "a", "b")
            await wait_intervals(back, "both sessions registered again", within=1, interval=2, call=1)


async def test_loading_is_never_an_empty_fleet() -> None:
    with RedisServer("--appendonly", "yes") as server:
        async with RedisRegistry(server.url) as registry:
            await asyncio.gather(*(registry.register(AgentInfo(f"agent-{n}")) for n in range(2_000)))
        server.admin().execute_command("BGREWRITEAOF")
        await wait_until(lambda: not info(server, "persistence")["aof_rewrite_in_progress"], "the file is written")
        async with RedisRegistry(server.url) as open_before:
            server.stop()
            server.options += ("--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024")
            server.start()
            refused = {"open before": 0, "opened anew": 0}
            answered: set[str] = set()
            while len(answered) < len(refused):
                for which in refused:
                    try:
                        async with AsyncExitStack() as stack:
                            registry = open_before
                            if which == "opened anew":
                                registry = await stack.enter_async_context(RedisRegistry(server.url))
                            assert len(await registry.list()) == 2_000
                            answered.add(which)
                    except BackendUnavailableError as error:
                        refused[which] += "loading" in str(error).lower()
                        await asyncio.sleep(0.05)
        assert all(refused.values())


def info(server: RedisServer, section: str) -> Any:
    with server.admin() as client:
        return client.info(section)


# --- lost, cut and late replies; killed connections; no free connection ---


async def test_a_heartbeat_with_a_lost_reply_is_retried(own_redis_server: RedisServer) -> None:
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url) as registry:
        await registry.register(AgentInfo("a"))
        for fault in ("answers_to_lose", "answers_to_cut"):
            setattr(proxy, fault, 1)
            await registry.heartbeat("a")
            setattr(proxy, fault, 1)
            assert (await registry.get("a")).id == "a"
    assert proxy.lost == 4


async def test_a_lost_reply_to_a_change_is_an_error_and_the_change_happened_once(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url) as registry:
        await registry.register(AgentInfo("a"))
        await registry.update("a", current_load=0)
        await registry.register(AgentInfo("b"))
        await registry.deregister("b")  # so that the server has all scripts
        for fault in ("answers_to_lose", "answers_to_cut"):
            for call in (registry.register(AgentInfo("b")), registry.update("a", current_load=1)):
                await registry.get("a")  # so that a connection is open
                client.config_resetstat()
                setattr(proxy, fault, 1)
                with pytest.raises(BackendUnavailableError):
                    await call
                stats: Any = client.info("commandstats")
                assert stats["cmdstat_evalsha"]["calls"] == 1
            await registry.get("a")
            setattr(proxy, fault, 1)
            with pytest.raises(BackendUnavailableError):
                await registry.deregister("b")
            with pytest.raises(AgentNotFoundError):
                await registry.get("b")
        assert (await registry.get("a")).current_load == 1


async def test_late_replies_are_not_mixed_up(own_redis_server: RedisServer) -> None:
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url, timeout=1) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(f"agent-{n}")) for n in range(20)))
        proxy.delay = 1.5
        with pytest.raises(BackendUnavailableError):
            await registry.get("agent-1")
        proxy.delay = 0.0
        found = await asyncio.gather(*(registry.get(f"agent-{n}") for n in range(20)))
        assert [agent.id for agent in found] == [f"agent-{n}" for n in range(20)]


async def test_killed_connections_fail_no_read(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
        for _ in range(20):  # idle
            client.client_kill_filter(_type="normal", skipme=True)
            await registry.heartbeat("a")
        with socket.create_connection(("127.0.0.1", own_redis_server.port)) as killer:
            for _ in range(20):  # in flight: a stopped server reads the kill before the reads
                await registry.get("a")  # The server has accepted this connection.
                own_redis_server.pause()
                killer.sendall(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
                reads = [asyncio.create_task(registry.get("a")) for _ in range(20)]
                for _ in range(20):
                    await asyncio.sleep(0)  # so that they are sent
                own_redis_server.resume()
                assert [agent.id for agent in await asyncio.gather(*reads)] == ["a"] * 20
                assert int(killer.recv(64).removeprefix(b":")) > 0


async def test_calls_wait_or_time_out_when_every_connection_is_in_use(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=20, max_connections=4) as registry:
        await registry.register(AgentInfo("a"))
        assert all(len(agents) == 1 for agents in await asyncio.gather(*(registry.list() for _ in range(150))))
    timeout = 1.0
    async with RedisRegistry(own_redis_server.url, timeout=timeout, max_connections=4) as registry:
        own_redis_server.pause()
        async with asyncio.timeout(3 * timeout):
            answers = await asyncio.gather(*(registry.list() for _ in range(150)), return_exceptions=True)
        assert all(isinstance(answer, BackendUnavailableError) for answer in answers)
        own_redis_server.resume()
        await wait_until(is_there(registry), "the registry works again")


# --- a server that is busy, full, read-only, or rejects calls ---


async def test_a_sleeping_server(redis_url: str) -> None:
    with RedisServer("--enable-debug-command", "yes") as server:
        async with RedisRegistry(server.url, timeout=1) as registry:
            await registry.register(AgentInfo("a"))
            sleeping = asyncio.create_task(asyncio.to_thread(server.admin().execute_command, "DEBUG", "SLEEP", 3))
            with pytest.raises(BackendUnavailableError):
                for _ in range(200):
                    await registry.heartbeat("a")
                    await asyncio.sleep(0.005)
            await sleeping
            await registry.heartbeat("a")


async def test_a_script_that_blocks_the_server() -> None:
    with RedisServer("--lua-time-limit", "50") as server:
        async with RedisRegistry(server.url, timeout=2) as registry:
            await registry.register(AgentInfo("a"))
            client = aioredis.Redis(port=server.port, socket_timeout=20)
            blocking = asyncio.ensure_future(cast("Any", client).execute_command("EVAL", "while true do end", 0))
            with pytest.raises(BackendUnavailableError, match="BUSY"):
                for _ in range(400):
                    await registry.heartbeat("a")
                    await asyncio.sleep(0.005)
            server.admin().script_kill()
            with pytest.raises(redis.ResponseError):
                await blocking
            await client.aclose()
            await registry.heartbeat("a")


async def test_full_memory_is_rejected_and_deregister_still_works(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in "ab"))
        own_redis_server.admin().config_set("maxmemory", 1)
        for call in (registry.register(AgentInfo("c")), registry.update("a", name="x")):
            with pytest.raises(BackendRejectedError, match="raise maxmemory"):
                await call
        await registry.heartbeat("a")
        assert {agent.id for agent in await registry.list()} == {"a", "b"}
        await registry.deregister("a")
        assert {agent.id for agent in await registry.list()} == {"b"}
        own_redis_server.admin().config_set("maxmemory", 0)
        await registry.heartbeat("b")


async def test_evicted_agents_are_registered_again(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    async with (
        RedisRegistry(own_redis_server.url) as registry,
        registry.session(AgentInfo("a"), interval=BEAT) as session,
    ):
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", info(own_redis_server, "memory")["used_memory"] + 200_000)
        evicted = 0
        for number in range(5_000):
            with suppress(redis.ResponseError):
                client.set(f"other-{number}", "x" * 1_000)
            if not client.exists("agentic:agent:a"):
                evicted += 1
                break
        assert evicted
        client.config_set("maxmemory", 0)
        back = holds_all(own_redis_server, "a")
        await wait_intervals(
            lambda: back() and session.healthy, "the session has registered again", within=2, interval=BEAT
        )


async def test_a_primary_that_became_a_replica(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    with RedisServer() as other:
        async with RedisRegistry(own_redis_server.url, timeout=1) as registry:
            await registry.register(AgentInfo("a"))
            client.execute_command("REPLICAOF", "127.0.0.1", other.port)
            for call in (registry.heartbeat("a"), registry.register(AgentInfo("b"))):
                with pytest.raises(BackendUnavailableError, match="replica"):
                    await call
            client.execute_command("REPLICAOF", "NO", "ONE")
            await registry.register(AgentInfo("b"))


async def test_a_server_that_cannot_save(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
        client.config_set("save", "3600 1")
        shutil.rmtree(own_redis_server.folder)
        with suppress(redis.ResponseError):
            client.bgsave()

        async def refuses() -> bool:
            try:
                await registry.heartbeat("a")
            except BackendRejectedError as error:
                return "see its log" in str(error)
            return False

        await wait_until(refuses, "writes are refused with MISCONF")
        assert (await registry.get("a")).id == "a"
        own_redis_server.folder.mkdir()


async def test_a_server_without_its_replicas(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
        own_redis_server.admin().config_set("min-replicas-to-write", 1)
        with pytest.raises(BackendUnavailableError, match="too few replicas"):
            await registry.heartbeat("a")
        own_redis_server.admin().config_set("min-replicas-to-write", 0)
        await registry.heartbeat("a")


# --- hostile records ---

HEAD = '{"id":"deep","status":"available","last_heartbeat":"2020-01-01T00:00:00Z","metadata":'


@pytest.mark.parametrize(
    "record",
    [
        HEAD + "[" * 100_000 + "]" * 100_000 + "}",
        HEAD + '{"x":' * 100_000 + "1" + "}" * 100_000 + "}",
        HEAD + "[" * 100_000,
    ],
    ids=["arrays", "objects", "never closed"],
)
async def test_a_record_100_000_levels_deep_is_counted_and_the_rest_goes_on(
    redis_store: RedisStore, record: str
) -> None:
    key = f"{redis_store.prefix}:agent:deep"
    async with redis_store.make() as registry:
        await registry.register(AgentInfo("a"))
        await registry.register(AgentInfo("stale", last_heartbeat=LONG_AGO))
        redis_store.client.set(key, record)
        with pytest.raises(CorruptRecordError, match="deep"):
            await registry.get("deep")
        assert {agent.id for agent in await registry.list()} == {"a", "stale"}
        assert registry.corrupt_records == 1
        assert await registry.reap(60) == ["stale"]
        assert registry.corrupt_records == 2
        with pytest.raises(RegistryError):
            await registry.update("deep", current_load=1)
        assert redis_store.client.get(key) == record.encode()
        await registry.heartbeat("a")
        await registry.deregister("deep")
        assert not redis_store.client.exists(key)

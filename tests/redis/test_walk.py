"""Scans of the fleet while its servers change: every agent once, or an error, never a partial list."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import redis

from agentic import AgentInfo, AgentStatus, BackendRejectedError, BackendUnavailableError, RedisRegistry
from agentic.backends.redis.backend import RedisBackend
from agentic.backends.redis.keys import Keys
from agentic.backends.redis.scan import MAX_STARTS, PAGE_SIZE, FleetScan, RecordPage
from agentic.backends.redis.server_info import LATEST
from agentic.backends.redis.servers import OneServer, Page, Scanned, Servers
from agentic.testing import RedisServer, wait_until
from tests.support.documents import documented_acl
from tests.support.redis_fleet import SERVICE, RedisCluster, SentinelTrio
from tests.support.stores import RedisStore

FLEET = 3_000
"""Several pages."""

IDS = {f"agent-{number}" for number in range(FLEET)}


@pytest.fixture
def keeping_server() -> Iterator[RedisServer]:
    """A server that keeps its data when restarted."""
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


async def register_fleet(registry: RedisRegistry) -> None:
    await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in IDS))


async def test_a_restart_during_a_scan_hides_no_agent(keeping_server: RedisServer) -> None:
    async with RedisRegistry(keeping_server.url, ttl=None) as registry:
        await register_fleet(registry)
        seen: list[str] = []
        async with aclosing(registry.scan()) as agents:
            async for agent in agents:
                seen.append(agent.id)
                if len(seen) == FLEET // 2:
                    keeping_server.stop()
                    # Without an await, so that the scan does not find it down, nor while it loads its data.
                    keeping_server.start()
                    info: Any = {"loading": 1}
                    while info["loading"]:
                        info = keeping_server.admin().info("persistence")
        assert sorted(seen) == sorted(IDS)


def is_followed(port: int) -> bool:
    with redis.Redis(port=port) as primary:
        info: Any = primary.info("replication")
        return bool(info["connected_slaves"] == 1)


async def test_a_failover_during_a_scan_hides_no_agent(sentinel_trio: SentinelTrio) -> None:
    async with RedisRegistry(sentinel_trio.url, ttl=None, prefix="failover") as registry:
        await register_fleet(registry)
        old = sentinel_trio.primary_port()
        with redis.Redis(port=old) as primary:
            assert primary.execute_command("WAIT", 1, 10_000) == 1
        seen: list[str] = []
        async with aclosing(registry.scan()) as agents:
            async for agent in agents:
                seen.append(agent.id)
                if len(seen) == FLEET // 2:
                    with redis.Redis(port=sentinel_trio.sentinels[0][1]) as sentinel:
                        sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
                    await wait_until(lambda: sentinel_trio.primary_port() != old, "the other is primary", within=30)
                    await wait_until(lambda: is_followed(sentinel_trio.primary_port()), "it is followed", within=30)
        assert sorted(seen) == sorted(IDS)
        assert await registry.flush() == FLEET


async def test_a_server_that_changes_again_and_again_is_an_error() -> None:
    class Unsteady(OneServer):
        def __init__(self) -> None:
            self.runs = 0

        async def page(self, node: Any, keys: Sequence[bytes], scan: Any) -> Any:
            self.runs += 1
            return Page([None] * len(keys), [LATEST] * len(keys), Scanned(b"%d" % self.runs, 1, []))

    async def size(page: RecordPage) -> int:
        return len(page.records)

    servers: Servers = Unsteady()
    with pytest.raises(BackendUnavailableError, match="kept changing"):
        walk = FleetScan(servers, Keys("agentic"))
        while True:
            await walk.next(size)
    assert servers.runs == 2 * MAX_STARTS  # type: ignore[attr-defined]


async def test_a_scan_yields_what_it_read_before_the_server_fails(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=2) as registry:
        await register_fleet(registry)
        seen: list[str] = []
        with pytest.raises(BackendUnavailableError):
            async for agent in registry.scan():
                seen.append(agent.id)
                own_redis_server.stop()
        # The second page was read while the first was processed; the server may repeat some keys.
        assert 2 * PAGE_SIZE - 50 <= len(seen) < FLEET
        assert len(seen) == len(set(seen))


async def test_no_request_is_pending_between_two_pages_or_after_a_cancelled_page(
    own_redis_server: RedisServer,
) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=20) as registry:
        await register_fleet(registry)
        page, cursor = await registry.backend.scan(None)
        assert page
        assert asyncio.all_tasks() == {asyncio.current_task()}
        own_redis_server.pause()
        reading = asyncio.create_task(registry.backend.scan(cursor))
        await wait_until(lambda: len(asyncio.all_tasks()) == 3, "the page after the next one is being read")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert asyncio.all_tasks() == {asyncio.current_task()}
        own_redis_server.resume()
        assert len(await registry.list()) == FLEET


@pytest.mark.timeout(300)
async def test_a_registry_that_only_lists_finds_a_new_primary_of_its_cluster(own_redis_cluster: RedisCluster) -> None:
    cluster = own_redis_cluster
    async with RedisRegistry(cluster.url, ttl=None) as registry:
        await register_fleet(registry)
        assert len(await registry.list()) == FLEET
        with cluster.joined_by_another() as seventh:
            await asyncio.to_thread(cluster.move_slots, 600, cluster.servers[0], seventh)
            assert {agent.id for agent in await registry.list()} == IDS
            assert set(await registry.reap(0)) == IDS
            assert await registry.flush() == FLEET


async def test_the_work_on_a_page_ends_although_the_server_after_it_hangs() -> None:
    keys = Keys("x")

    class Fleet(Servers):
        async def nodes(self) -> Sequence[Any]:
            return ["answers", "hangs"]

        def layout(self) -> object:
            return None

        async def page(self, node: Any, keys: Sequence[bytes], scan: Any) -> Page:
            if node == "hangs":
                await asyncio.Event().wait()
            scanned = None if scan is None else Scanned(b"run", 0, [b"x:agent:a"])
            return Page([b"record"] * len(keys), [LATEST] * len(keys), scanned)

    async def records(page: RecordPage) -> list[bytes]:
        return [key for key, _, _ in page.records]

    Fleet.__abstractmethods__ = frozenset()
    walk = FleetScan(Fleet(1, 1.0), keys)  # type: ignore[abstract]
    assert await asyncio.wait_for(walk.next(records), 20) == ([b"x:agent:a"], True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(walk.next(records), 0.05)


async def test_killed_connections_in_a_cluster_fail_no_read_or_heartbeat(redis_cluster: RedisCluster) -> None:
    async with RedisRegistry(redis_cluster.url, prefix="killed") as registry:
        await registry.register(AgentInfo("a"))
        for _ in range(5):
            for server in redis_cluster.servers[:3]:
                redis_cluster.ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await registry.heartbeat("a")
            assert (await registry.get("a")).id == "a"
        await registry.deregister("a")


async def test_the_documented_rights_suffice_in_a_cluster(own_redis_cluster: RedisCluster) -> None:
    cluster = own_redis_cluster
    for server in cluster.servers:
        cluster.ask(server, *documented_acl(), "~{agentic:*}:*", "+cluster|slots", "+command")
    async with RedisRegistry(cluster.url.replace("://", "://agentic:password@")) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(f"a{number}")) for number in range(20)))
        await registry.update("a1", status=AgentStatus.OFFLINE, name="one")
        await registry.heartbeat("a1")
        assert len(await registry.list()) == len(await registry.reap(0)) == await registry.flush() == 20


async def test_a_refusal_by_a_cluster_is_rejected(own_redis_cluster: RedisCluster, redis_url: str) -> None:
    cluster = own_redis_cluster
    for server in cluster.servers:
        cluster.ask(server, "ACL", "SETUSER", "weak", "on", ">s3cr3t", "~*", "+@all", "-cluster|slots")
    for url, hint in (
        (cluster.url.replace("://", "://weak:s3cr3t@"), "lacks a permission"),
        (cluster.url.replace("://", "://weak:wr0ng@"), "check the user name"),
        (redis_url.replace("redis://", "redis+cluster://").removesuffix("/0"), "a single server: use redis://"),
    ):
        with pytest.raises(BackendRejectedError, match=hint) as caught:
            await RedisRegistry(url).open()
        assert "s3cr3t" not in str(caught.value)
        assert "wr0ng" not in str(caught.value)


async def test_a_key_of_another_type_is_logged_and_counted(
    redis_store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    key = f"{redis_store.prefix}:agent:list"
    async with redis_store.make() as registry:
        await registry.register(AgentInfo("a"))
        redis_store.client.rpush(key, "x")
        for count, walk in enumerate((registry.list, lambda: registry.reap(60), registry.list), start=1):
            with caplog.at_level(logging.WARNING):
                await walk()
            assert registry.corrupt_records == count
        assert "another type of value" in caplog.text
        assert [agent.id for agent in await registry.list()] == ["a"]
        with pytest.raises(BackendRejectedError, match="another type of value"):
            await registry.get("list")
    redis_store.client.delete(key)


async def test_agents_marked_before_an_error_of_a_sweep_are_reported(redis_store: RedisStore) -> None:
    class PartlyAnswered(RedisBackend):
        async def _mark(self, ids: list[str], found: Any) -> list[tuple[str, Any]]:
            marks = await super()._mark(ids, found)
            return [
                (agent_id, BackendUnavailableError("gone") if agent_id == "b" else mark) for agent_id, mark in marks
            ]

    registry = RedisRegistry(redis_store.url, prefix=redis_store.prefix)
    registry.backend.__class__ = PartlyAnswered
    async with registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in "abc"))
        with pytest.raises(BackendUnavailableError) as caught:
            await registry.reap(0)
        assert sorted(caught.value.reaped) == ["a", "c"]

"""Passwords and permissions of a Redis user, and what messages show of them."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
import redis

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    BackendRejectedError,
    RedisRegistry,
)
from agentic.backends.redis.keys import ShardedKeys
from agentic.testing import RedisServer
from tests.support.documents import documented_acl
from tests.support.redis_fleet import RedisCluster
from tests.support.stores import LONG_AGO


async def test_a_missing_permission_is_rejected_without_a_retry(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    client.execute_command("ACL", "SETUSER", "weak", "on", ">s3cr3t", "~agentic:agent:*", "+ping", "+evalsha", "+eval")
    url = own_redis_server.url.replace("redis://", "redis://weak:s3cr3t@")
    async with RedisRegistry(url) as registry:
        client.config_resetstat()
        with pytest.raises(BackendRejectedError, match="lacks a permission") as caught:
            await registry.get("a")
        stats: Any = client.info("commandstats")
        assert stats["cmdstat_mget"]["rejected_calls"] == 1
        assert "s3cr3t" not in str(caught.value) + repr(caught.value.__cause__) + repr(registry)


async def test_a_wrong_password_is_rejected(own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = own_redis_server.admin()
    client.config_set("requirepass", "right")
    client.auth("right")
    for url, hint in (("redis://:wr0ng@", "check the user name"), ("redis://", "add it to the URL")):
        client.config_resetstat()
        with pytest.raises(BackendRejectedError, match=hint) as caught:
            await RedisRegistry(own_redis_server.url.replace("redis://", url)).open()
        assert "wr0ng" not in "".join(traceback.format_exception(caught.value)) + caplog.text
        assert sum(each["count"] for each in client.info("errorstats").values()) == 1
        assert client.info("stats")["total_connections_received"] == 1


async def test_a_password_that_is_changed_under_an_open_registry(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = own_redis_server.admin()
    client.config_set("requirepass", "0ld")
    client.auth("0ld")
    async with RedisRegistry(own_redis_server.url.replace("redis://", "redis://:0ld@")) as registry:
        client.config_set("requirepass", "new")
        client.client_kill_filter(_type="normal", skipme=True)
        client.config_resetstat()
        for calls in (1, 2):  # the first one on a killed connection
            with pytest.raises(BackendRejectedError, match="check the user name") as caught:
                await registry.get("a")
            assert sum(each["count"] for each in client.info("errorstats").values()) == calls
            assert "0ld" not in "".join(traceback.format_exception(caught.value)) + caplog.text


# --- the documented permissions of a least-privileged user ---


async def test_the_documented_rights_suffice(own_redis_server: RedisServer) -> None:
    own_redis_server.admin().execute_command(*documented_acl())
    url = own_redis_server.url.replace("redis://", "redis://agentic:password@").replace("/0", "/2")
    for ttl in (300.0, None):
        async with RedisRegistry(url, ttl=ttl) as registry:
            await registry.register(AgentInfo("a"))
            await registry.register(AgentInfo("b", last_heartbeat=LONG_AGO))
            await registry.heartbeat("a")
            await registry.update("a", current_load=1)
            await registry.drain("a", reason="r", duration=3600)
            await registry.heartbeat("a")
            assert [*await registry.drains()] == ["a"]
            await registry.update("a", current_load=2, incarnation=(await registry.get("a")).incarnation)
            assert await registry.resume("a")
            await registry.heartbeat("a")
            assert await registry.reap(60) == ["b"]
            assert len(await registry.list()) == 2
            await registry.deregister("b")
            assert await registry.flush() == 1
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.config_get("maxmemory")


# --- a user who may only read ---


async def expect_viewer(url: str, prefix: str, others: str) -> None:
    """Check what a viewer sees of an agent, and of a key of another type."""
    async with RedisRegistry(url, prefix=prefix) as registry:
        assert [agent.id for agent in await registry.list()] == ["a"]
        drain = (await registry.get("a")).draining
        assert drain is not None
        assert await registry.drains() == {"a": drain}
        assert [agent.id async for agent in registry.scan()] == ["a"]
        with pytest.raises(AgentNotFoundError):
            await registry.get("absent")
        with pytest.raises(BackendRejectedError, match="another type"):
            await registry.get(others)
        await registry.store_time()
        for call in (registry.register(AgentInfo("b")), registry.heartbeat("a"), registry.deregister("a")):
            with pytest.raises(BackendRejectedError, match="lacks a permission"):
                await call


async def test_a_viewers_documented_rights_suffice_for_reading(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    client.execute_command(*documented_acl("viewer"))
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
        await registry.drain("a", reason="r")
    client.rpush("agentic:agent:list", "x")
    client.config_resetstat()
    await expect_viewer(own_redis_server.url.replace("://", "://viewer:password@"), "agentic", "list")
    rejected = {name: stats for name, stats in client.info("commandstats").items() if stats["rejected_calls"]}
    assert set(rejected) == {"cmdstat_evalsha"}


async def test_a_viewers_documented_rights_suffice_for_reading_in_a_cluster(own_redis_cluster: RedisCluster) -> None:
    cluster = own_redis_cluster
    for server in cluster.servers:
        words = [word for word in documented_acl("viewer") if not word.startswith("%R~")]
        cluster.ask(server, *words, "%R~{agentic:*}:agent:*", "%R~{agentic:*}:drains", "+cluster|slots", "+command")
    async with RedisRegistry(cluster.url) as registry:
        await registry.register(AgentInfo("a"))
        await registry.drain("a", reason="r")
    with redis.RedisCluster(host="127.0.0.1", port=cluster.servers[0].port) as client:
        client.rpush(ShardedKeys("agentic").agent("list").decode(), "x")
    await expect_viewer(cluster.url.replace("://", "://viewer:password@"), "agentic", "list")


async def test_a_user_without_time_and_info_reads_and_is_refused_once(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    client.execute_command("ACL", "SETUSER", "reader", "on", ">p", "~*", "+@read", "+@connection")
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
    async with RedisRegistry(own_redis_server.url.replace("://", "://reader:p@")) as registry:
        client.config_resetstat()
        for _ in range(5):
            assert (await registry.get("a")).id == "a"
            with pytest.raises(AgentNotFoundError):
                await registry.get("absent")
        assert (
            client.info("commandstats").get("cmdstat_time", {}).get("rejected_calls", 0) == 0
        )  # not counting the opening
        assert len(await registry.list()) == 1
        with pytest.raises(BackendRejectedError, match="lacks a permission"):
            await registry.store_time()

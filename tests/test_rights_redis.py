"""What a Redis user may do: passwords, rights, and what is shown of them."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest

from agentic import (
    AgentInfo,
    BackendError,
    BackendRejectedError,
    RedisRegistry,
)
from tests.redis_server import RedisServer
from tests.stores import LONG_AGO


async def test_a_missing_right_is_the_operators_and_asked_for_once(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    client.execute_command("ACL", "SETUSER", "weak", "on", ">s3cr3t", "~agentic:agent:*", "+ping", "+evalsha", "+eval")
    url = own_redis_server.url.replace("redis://", "redis://weak:s3cr3t@")
    async with RedisRegistry(url) as registry:
        client.config_resetstat()
        with pytest.raises(BackendRejectedError, match="lacks a right") as caught:
            await registry.get("a")
        stats: Any = client.info("commandstats")
        assert stats["cmdstat_mget"]["rejected_calls"] == 1
        assert "s3cr3t" not in str(caught.value) + repr(caught.value.__cause__) + repr(registry)


async def test_a_wrong_password_is_the_operators(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = own_redis_server.admin()
    client.config_set("requirepass", "right")
    client.auth("right")
    for url, hint in (("redis://:wr0ng@", "check the user name"), ("redis://", "put it into the URL")):
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
        for calls in (1, 2):  # the first on a connection that was killed
            with pytest.raises(BackendRejectedError, match="check the user name") as caught:
                await registry.get("a")
            assert sum(each["count"] for each in client.info("errorstats").values()) == calls
            assert "0ld" not in "".join(traceback.format_exception(caught.value)) + caplog.text


# --- the rights of a least-privileged user, as the documentation gives them ---


async def test_the_documented_rights_suffice(own_redis_server: RedisServer) -> None:
    from tests.test_docs import documented_acl  # noqa: PLC0415

    own_redis_server.admin().execute_command(*documented_acl())
    url = own_redis_server.url.replace("redis://", "redis://agentic:password@").replace("/0", "/2")
    for ttl in (300.0, None):
        async with RedisRegistry(url, ttl=ttl) as registry:
            await registry.register(AgentInfo("a"))
            await registry.register(AgentInfo("b", last_heartbeat=LONG_AGO))
            await registry.heartbeat("a")
            await registry.update("a", current_load=1)
            assert await registry.reap(60) == ["b"]
            assert len(await registry.list()) == 2
            await registry.deregister("b")
            assert await registry.flush() == 1
            with pytest.raises(BackendError):
                await registry._servers.ask(None, "CONFIG", "GET", "maxmemory")

"""What `agentic doctor` finds, and that it changes nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from agentic import AgentInfo, MemoryRegistry, RedisRegistry, SQLiteRegistry
from agentic.cli import app
from agentic.doctor import examine
from agentic.findings import Level
from tests.redis_server import RedisServer


async def findings(registry: Any) -> dict[str, tuple[Level, str, str]]:
    async with registry:
        return {each.subject: (each.level, each.found, each.advice) async for each in examine(registry)}


async def test_a_sound_store_has_nothing_bad(own_redis_server: RedisServer, tmp_path: Path) -> None:
    for registry in (MemoryRegistry(), SQLiteRegistry(tmp_path / "r.db"), RedisRegistry(own_redis_server.url)):
        async with registry:
            await registry.register(AgentInfo("a"))
        found = await findings(registry)
        assert {level for level, _, _ in found.values()} == {Level.OK}, found
        assert found["agents"][1] == "1: 1 available"
        assert {"latency", "clock offset to this host", "rights", "corrupt records"} <= set(found)


async def test_a_redis_that_may_lose_agents_is_told(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis(port=own_redis_server.port) as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("maxmemory", 100_000_000)
        client.set("agentic:agent:bad", "no JSON")
        client.execute_command("ACL", "SETUSER", "weak", "on", ">p", "~*", "+@all", "-evalsha", "-eval")
    found = await findings(RedisRegistry(own_redis_server.url))
    assert found["eviction"][:2] == (Level.BAD, "volatile-lru")
    assert found["corrupt records"][:2] == (Level.BAD, "1")
    assert "may evict agents" in caplog.text
    weak = await findings(RedisRegistry(own_redis_server.url.replace("redis://", "redis://weak:p@")))
    assert weak["rights"][:2] == (Level.BAD, "register is refused")


async def test_a_replica_is_told(own_redis_server: RedisServer) -> None:
    with RedisServer() as other:
        with redis.Redis(port=own_redis_server.port) as client:
            client.execute_command("REPLICAOF", "127.0.0.1", other.port)
        registry = RedisRegistry(own_redis_server.url)
        async with registry:
            found = {}
            async for each in examine(registry):
                found[each.subject] = each.level
                if each.subject == "role":
                    break
    assert found["role"] is Level.BAD


def test_the_command_prints_lines_or_json_and_exits_with_1_when_something_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    url = f"sqlite:///{path}"
    assert CliRunner().invoke(app, ["register", "a", "--url", url]).exit_code == 0
    done = CliRunner().invoke(app, ["doctor", "--url", url])
    assert done.exit_code == 0, done.output
    assert "integrity" in done.stdout
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE agents SET metadata = 'no JSON'")
    done = CliRunner().invoke(app, ["doctor", "--json", "--url", url])
    assert done.exit_code == 1
    bad = [each for each in json.loads(done.stdout) if each["level"] == "bad"]
    assert [each["subject"] for each in bad] == ["corrupt records"]
    assert bad[0]["advice"]

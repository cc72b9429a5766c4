"""What `agentic doctor` finds, and that it changes nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import redis
from typer.testing import CliRunner

from agentic import (
    AgentInfo,
    BackendUnavailableError,
    MemoryRegistry,
    RedisRegistry,
    RegistryClosedError,
    SQLiteRegistry,
)
from agentic.backends.redis.diagnosis import _version
from agentic.cli.app import app
from agentic.doctor import examine
from agentic.findings import Finding, Level
from agentic.testing import RedisServer, StoreUnderTest, wait_until
from tests.support.documents import documented_acl
from tests.support.proxy import Proxy


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
    assert weak["rights"][0] is Level.BAD
    assert weak["scripts"][:2] == (Level.BAD, "EVAL is refused")


async def bad_findings(registry: Any) -> list[tuple[str, str]]:
    async with registry:
        return [(each.subject, each.found) async for each in examine(registry) if each.level is Level.BAD]


@pytest.mark.parametrize(
    ("right", "ttl", "told"),
    [
        ("+time", 300, {"clock", "register is refused", "heartbeat is refused"}),
        ("+eval", 300, {"EVAL is refused"}),
        ("+set", 300, {"register is refused"}),
        ("+mget", 300, {"heartbeat is refused", "update is refused"}),
        ("+setrange", 300, {"heartbeat is refused"}),
        ("+pexpire", 300, {"heartbeat is refused"}),
        ("+psetex", 300, {"register is refused"}),
        ("+persist", None, {"heartbeat is refused"}),
        ("+evalsha", 300, {"register is refused", "update is refused", "deregister is refused"}),
        ("+del", 300, {"which may stay, is refused"}),
        ("+scan", 300, {"agents could not be examined"}),
    ],
)
async def test_each_missing_right_is_told_and_what_can_be_removed_is(
    own_redis_server: RedisServer, right: str, ttl: float | None, told: set[str]
) -> None:
    with redis.Redis(port=own_redis_server.port) as client:
        async with RedisRegistry(own_redis_server.url) as registry:
            # So that the server knows every script, and EVAL is not needed for the calls themselves.
            await registry.register(AgentInfo("a"))
            await registry.heartbeat("a")
            await registry.update("a", name="n")
            await registry.deregister("a")
        rights = [word for word in documented_acl() if word[0] in "~+" and word != right]
        client.execute_command("ACL", "SETUSER", "weak", "on", ">p", *rights)
        found = await bad_findings(RedisRegistry(own_redis_server.url.replace("://", "://weak:p@"), ttl=ttl))
        shown = "\n".join(f"{subject} {what}" for subject, what in found)
        assert all(each in shown for each in told), shown
        assert len(client.keys("agentic:agent:doctor-*")) == (right == "+del")


async def test_what_the_server_says_of_itself_is_told(own_redis_server: RedisServer) -> None:
    with redis.Redis(port=own_redis_server.port) as client:
        info: Any = client.info()
        version = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
        sound = await findings(RedisRegistry(own_redis_server.url))
        assert sound["server"][:2] == (Level.OK, version)
        assert sound["memory"][0] is Level.OK
        assert sound["memory"][1].endswith("bytes of no limit")
        assert sound["persistence"][1].startswith("no append-only file")
        assert sound["role"][:2] == (Level.OK, "primary with 0 replicas")

        client.config_set("appendonly", "yes")
        client.config_set("maxmemory", info["used_memory"] + 50_000)
        told = await findings(RedisRegistry(own_redis_server.url))
        assert told["persistence"][:2] == (Level.OK, "append-only file")
        assert told["memory"][0] is Level.BAD
        assert told["memory"][1].endswith(f"of {info['used_memory'] + 50_000:,} bytes")

        # A folder where the dump should go.
        (own_redis_server.folder / "dump.rdb").mkdir()
        client.bgsave()
        await wait_until(
            lambda: cast("Any", client.info())["rdb_last_bgsave_status"] == "err", "the server could not save"
        )
        told = await findings(RedisRegistry(own_redis_server.url))
        assert told["persistence"][:2] == (Level.BAD, "the last save failed")


def test_a_server_that_is_too_old_is_told() -> None:
    assert _version({"redis_version": "6.0.16"}).level is Level.BAD
    assert _version({"redis_version": "6.2.0"}).level is Level.OK
    assert _version({"redis_version": "7.2.4", "valkey_version": "8.1.0"}) == Finding(
        Level.OK, "server", "Valkey 8.1.0"
    )


async def test_what_a_sqlite_file_is_like_is_told(tmp_path: Path) -> None:
    registry = SQLiteRegistry(tmp_path / "r.db", synchronous="FULL")
    async with registry:
        sound = {each.subject: each async for each in examine(registry)}
        assert sound["SQLite"].found == sqlite3.sqlite_version
        assert (sound["integrity"].level, sound["integrity"].found) == (Level.OK, "ok")
        assert (sound["journal"].level, sound["journal"].found) == (Level.OK, "wal")
        assert sound["synchronous"].found == "FULL"
        assert sound["names"].found == "one"
        assert sound["file"].found.endswith(" bytes")
    assert (await findings(SQLiteRegistry(":memory:")))["journal"][:2] == (Level.OK, "memory")


@pytest.mark.parametrize("how", ["an id changed in the index", "the index overwritten"])
async def test_a_damaged_sqlite_file_is_told(tmp_path: Path, how: str) -> None:
    path = tmp_path / "r.db"
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("agent-x"))
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        index = file.read(size)
        file.seek((page - 1) * size)
        file.write(index.replace(b"agent-x", b"agent-y") if how.startswith("an id") else b"\xff" * size)
    found = await findings(SQLiteRegistry(path))
    level, _, advice = found["integrity"]
    assert level is Level.BAD
    assert "it is damaged: stop every program" in advice


async def test_a_replica_is_told_and_whether_it_is_in_sync(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()

    async def role(registry: RedisRegistry) -> Finding:
        return {each.subject: each async for each in registry.diagnose()}["role"]

    with RedisServer("--repl-diskless-sync-delay", "0") as other:
        client.execute_command("REPLICAOF", "127.0.0.1", other.port)
        await wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica is in sync")
        async with RedisRegistry(own_redis_server.url) as registry:
            found = await role(registry)
            assert (found.level, found.found) == (Level.BAD, "replica in sync")
            assert found.advice.startswith("writes are refused")
            client.execute_command("REPLICAOF", "127.0.0.1", 1)
            found = await role(registry)
            assert (found.level, found.found) == (Level.BAD, "replica with its link to the primary down")
            assert found.advice.startswith("reads and writes are refused")


async def test_keys_of_others_are_told_where_they_are_many() -> None:
    with RedisServer("--enable-debug-command", "yes") as server:
        url, client = server.url, server.admin()
        async with RedisRegistry(url) as registry:
            await registry.register(AgentInfo("a"))
        assert (await findings(RedisRegistry(url)))["keys"][:2] == (Level.OK, "2 in the database")
        client.execute_command("DEBUG", "POPULATE", 20_000, "cache", 5)
        level, found, advice = (await findings(RedisRegistry(url)))["keys"]
        assert (level, found) == (Level.NOTE, "20,002 in the database, about 100% of them foreign to this registry")
        assert "its own database" in advice
        assert (await findings(RedisRegistry(url, db=1)))["keys"][:2] == (Level.OK, "0 in the database")
        client.flushall()
        client.execute_command("DEBUG", "POPULATE", 20_000, "agentic:agent", 5)
        assert (await findings(RedisRegistry(url)))["keys"][:2] == (Level.OK, "20,000 in the database")


async def test_a_user_who_may_only_read_is_told_apart_from_one_who_lacks_the_scripts(
    own_redis_server: RedisServer,
) -> None:
    client = own_redis_server.admin()
    client.execute_command(*documented_acl("viewer"))
    client.execute_command("ACL", "SETUSER", "weak", "on", ">p", "~*", "+@all", "-evalsha", "-eval")
    viewer = await findings(RedisRegistry(own_redis_server.url.replace("://", "://viewer:password@")))
    assert viewer["user"][:2] == (Level.NOTE, "may read only")
    assert viewer["rights"][:2] == (Level.NOTE, "not examined, because the user may read only")
    assert not [subject for subject, (level, *_) in viewer.items() if level is Level.BAD]
    assert "scripts" not in viewer
    weak = await findings(RedisRegistry(own_redis_server.url.replace("://", "://weak:p@")))
    assert weak["scripts"][:2] == (Level.BAD, "EVAL is refused")
    assert "user" not in weak


@pytest.mark.parametrize("subject", ["store", "scripts", "latency", "clock offset to this host"])
async def test_a_store_that_hangs_is_a_finding_and_so_is_what_was_not_examined(
    own_redis_server: RedisServer, subject: str
) -> None:
    found = {}
    registry = RedisRegistry(own_redis_server.url, timeout=1)
    try:
        async with registry, asyncio.timeout(20):
            async for each in examine(registry):
                found[each.subject] = each
                if each.subject == subject:
                    own_redis_server.pause()
            own_redis_server.resume()
    finally:
        own_redis_server.resume()
    hung = {"store": "state of the store", "scripts": "latency", "latency": "clock"}.get(subject, "rights")
    assert found[hung].level is Level.BAD
    assert "could not be examined: " in found[hung].found
    assert found["agents"] == Finding(Level.NOTE, "agents", "not examined, because the store did not answer")


async def test_a_file_that_others_keep_locked_is_examined_as_far_as_it_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    async with SQLiteRegistry(path, timeout=0.3) as registry:
        await registry.register(AgentInfo("a"))
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            found = {each.subject: each for each in await _all_findings(registry)}
    assert found["rights"].level is Level.BAD
    assert found["rights"].found.startswith("could not be examined: ")
    assert found["agents"] == Finding(Level.OK, "agents", "1: 1 available")


async def test_the_agent_that_proves_the_rights_is_removed_when_the_examination_is_cancelled(
    own_redis_server: RedisServer,
) -> None:
    client = own_redis_server.admin()
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url) as registry:
        proxy.delay = 0.2
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_all_findings, registry)
            await wait_until(lambda: bool(client.keys("agentic:agent:doctor-*")), "the agent is registered")
            tasks.cancel_scope.cancel()
        assert client.keys("agentic:agent:doctor-*") == []


async def test_an_agent_that_could_not_be_removed_is_named(own_redis_server: RedisServer) -> None:
    client = own_redis_server.admin()
    async with Proxy(own_redis_server.port) as proxy, RedisRegistry(proxy.url, timeout=1) as registry:
        proxy.delay = 0.2
        task = asyncio.create_task(_all_findings(registry))
        await wait_until(lambda: bool(client.keys("agentic:agent:doctor-*")), "the agent is registered")
        (key,) = client.keys("agentic:agent:doctor-*")
        own_redis_server.pause()
        found = {each.subject: each for each in await task}
        own_redis_server.resume()
    assert found["rights"].level is Level.BAD
    assert (
        f"agent {key.decode().removeprefix('agentic:agent:')!r} may stay, because its removal failed"
        in found["rights"].found
    )


async def _all_findings(registry: Any) -> list[Finding]:
    return [finding async for finding in examine(registry)]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "sqlite:////no/such/folder/r.db"])
def test_a_store_that_cannot_be_opened_is_an_error_and_a_finding_in_json(url: str) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json", "--url", url])
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout)
    assert (found["level"], found["subject"]) == ("bad", "store")
    assert done.stderr == f"error: {'; '.join(filter(None, (found['found'], found['advice'])))}\n"
    assert CliRunner().invoke(app, ["doctor", "--url", url]).stdout == ""


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


async def test_diagnosis_of_a_store_that_hangs_ends_with_the_timeout(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=1) as registry:
        own_redis_server.pause()
        with pytest.raises(BackendUnavailableError):
            _ = [finding async for finding in registry.diagnose()]
        own_redis_server.resume()


async def test_a_registry_that_is_not_open_is_not_diagnosed(store: StoreUnderTest) -> None:
    with pytest.raises(RegistryClosedError):
        _ = [finding async for finding in store.make().diagnose()]

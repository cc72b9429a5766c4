"""Redis only: keys, expiry, scripts, round trips, and a failing server."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import redis
import redis.asyncio as aioredis

from agentic import AgentInfo, AgentNotFoundError, BackendError, Beat, ConfigurationError, RedisRegistry
from agentic.backends.redis.scan import PAGE_SIZE
from agentic.testing import RedisServer, wait_until
from tests.support.redis_fleet import RedisCluster
from tests.support.stores import RedisStore


def key(store: RedisStore, agent_id: str) -> str:
    return f"{store.prefix}:agent:{agent_id}"


# --- keys ---


async def test_an_agent_is_one_key_that_expires_to_the_millisecond(redis_store: RedisStore) -> None:
    async with redis_store.make(ttl=1.5) as registry:
        await registry.register(AgentInfo("a"))
        assert 1000 < redis_store.client.pttl(key(redis_store, "a")) <= 1500
        redis_store.client.pexpire(key(redis_store, "a"), 700)
        await registry.update("a", name="x")
        counter = f"{redis_store.prefix}:incarnation".encode()
        assert set(redis_store.client.scan_iter(f"{redis_store.prefix}*")) == {key(redis_store, "a").encode(), counter}
        assert 86_000 < redis_store.client.ttl(counter) <= 86_400
        await registry.reap(0)
        assert 0 < redis_store.client.pttl(key(redis_store, "a")) <= 700
        await registry.heartbeat("a")
        assert 1000 < redis_store.client.pttl(key(redis_store, "a")) <= 1500


async def test_an_agent_expires_by_itself(redis_store: RedisStore) -> None:
    async with redis_store.make(ttl=0.05) as registry:
        await registry.register(AgentInfo("a"))

        async def gone() -> bool:
            return await registry.list() == []

        await wait_until(gone, "the key expires")
        with pytest.raises(AgentNotFoundError):
            await registry.heartbeat("a")


async def test_without_a_ttl_the_key_does_not_expire(redis_store: RedisStore) -> None:
    async with redis_store.make(ttl=None) as registry:
        await registry.register(AgentInfo("a"))
        await registry.heartbeat("a")
        assert redis_store.client.pttl(key(redis_store, "a")) == -1
    async with redis_store.make() as registry:
        await registry.heartbeat("a")
        assert 299_000 < redis_store.client.pttl(key(redis_store, "a")) <= 300_000
    async with redis_store.make(ttl=None) as registry:
        await registry.heartbeat("a")
        assert redis_store.client.pttl(key(redis_store, "a")) == -1


@pytest.mark.parametrize("special", ["team[1]", "te*", "t?am", "te\\am", "[a-z]", "{tag}", "agent:b", "^-", "é"])
async def test_a_prefix_is_taken_literally(redis_store: RedisStore, special: str) -> None:
    lookalikes = ["team1", "team", "teXam", "m", "tag", "a", "te*\\", "te"]
    prefixes = [f"{redis_store.prefix}{text}" for text in (special, *lookalikes)]
    for prefix in prefixes:
        async with RedisRegistry(redis_store.url, prefix=prefix) as registry:
            await registry.register(AgentInfo("x", name=prefix))
    async with RedisRegistry(redis_store.url, prefix=prefixes[0]) as registry:
        assert [agent.name for agent in await registry.list()] == [prefixes[0]]
        assert await registry.reap(0) == ["x"]
        assert await registry.flush() == 1
    for prefix in prefixes[1:]:
        async with RedisRegistry(redis_store.url, prefix=prefix) as registry:
            assert [(agent.name, agent.status) for agent in await registry.list()] == [(prefix, "available")]


async def test_keys_of_another_type_are_left_alone(redis_store: RedisStore) -> None:
    client = redis_store.client
    client.rpush(key(redis_store, "list"), "1")
    client.hset(key(redis_store, "hash"), "f", "v")
    client.set(f"{redis_store.prefix}:other", "1")
    client.set(key(redis_store, "text"), "no record")
    before = {k: client.dump(k) for k in client.scan_iter(f"{redis_store.prefix}*")}
    async with redis_store.make() as registry:
        for agent_id in ("list", "hash"):
            for call in (
                registry.register(AgentInfo(agent_id)), registry.heartbeat(agent_id),
                registry.update(agent_id, name="x"), registry.deregister(agent_id),
            ):  # fmt: skip
                with pytest.raises(BackendError, match="another type"):
                    await call
        assert await registry.list() == []
        assert await registry.reap(0) == []
        assert await registry.flush() == 0
    assert {k: client.dump(k) for k in client.scan_iter(f"{redis_store.prefix}*")} == before


@pytest.mark.parametrize("where", ["one server", "cluster"])
async def test_a_heartbeat_in_the_servers_future_is_read_as_of_now(
    redis_url: str, redis_cluster: RedisCluster, where: str
) -> None:
    store = RedisStore(redis_url)
    if where == "cluster":
        store = RedisStore(redis_cluster.url, redis.RedisCluster(host="127.0.0.1", port=redis_cluster.servers[0].port))
    record = b'{"id":"a","name":"","status":"available","last_heartbeat":"2999-01-01T00:00:00Z","current_load":0,"max_load":0}'
    place = store.keys.agent("a")
    async with store.make() as registry:
        reads: list[Callable[[], Awaitable[AgentInfo]]] = [
            lambda: registry.get("a"),
            lambda: first(registry.list()),
            lambda: anext(registry.scan()),
            lambda: registry.update("a", current_load=0),
        ]
        for read in reads:
            store.client.set(place, record)
            before = await registry.store_time()
            agent = await read()
            assert before <= cast("Any", agent.last_heartbeat) <= await registry.store_time()
            assert store.client.get(place) == record
            assert await registry.reap(0) == []
    store.close()


async def first(agents: Awaitable[list[AgentInfo]]) -> AgentInfo:
    return (await agents)[0]


# --- scripts and round trips ---


async def test_scripts_are_sent_again_when_the_server_forgot_them(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        for _ in range(2):
            redis_store.client.script_flush()
            await registry.register(AgentInfo("a"))
            redis_store.client.script_flush()
            await registry.heartbeat("a")
            redis_store.client.script_flush()
            await registry.update("a", name="x")
            redis_store.client.script_flush()
            assert await registry.reap(0) == ["a"]
            redis_store.client.script_flush()
            await registry.deregister("a")


async def test_each_agent_is_listed_once_though_the_server_repeats_keys(own_redis_server: RedisServer) -> None:
    ids = [f"agent-{number}" for number in range(20_000)]
    async with (
        aioredis.Redis.from_url(own_redis_server.url) as client,
        RedisRegistry(own_redis_server.url) as registry,
    ):

        async def table_has_shrunk() -> bool:
            stats = await cast("Any", client.memory_stats())
            return int(stats["db.0"]["overhead.hashtable.main"]) < 50_000

        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
        scan = registry.scan()
        seen = [(await anext(scan)).id for _ in range(PAGE_SIZE)]
        # A key table that shrinks during a SCAN makes the server return some recent keys again. Keep a
        # fifth of the keys returned so far, and none of the others.
        cursor, given = 0, []
        for _ in range(3):
            cursor, keys = await client.scan(cursor, count=PAGE_SIZE)
            given += keys
        await client.delete(*set(await client.keys()) - set(given[::5]))
        await wait_until(table_has_shrunk, "the server has made its key table smaller")
        seen += [agent.id async for agent in scan]
        assert len(seen) == len(set(seen))
        assert set(seen) >= {agent.id for agent in await registry.list()}


async def test_a_fleet_of_20000_takes_tens_of_round_trips(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        await asyncio.gather(*(registry.register(AgentInfo(f"agent-{index}")) for index in range(20_000)))
        for call in (registry.list, lambda: registry.reap(3600)):
            redis_store.client.config_resetstat()
            await call()
            stats: Any = redis_store.client.info("commandstats")
            calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
            assert 20 <= calls["mget"] <= 60
            assert 20 <= calls["scan"] <= 60
            assert not {"get", "eval", "evalsha"} & set(calls)


async def test_concurrent_heartbeats_share_round_trips(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        ids = [f"agent-{index}" for index in range(2000)]
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
        redis_store.client.config_resetstat()
        await asyncio.gather(*(registry.heartbeat(agent_id) for agent_id in ids))
        stats: Any = redis_store.client.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] + stats.get("cmdstat_eval", {"calls": 0})["calls"] < 30


async def test_a_new_connection_gives_the_server_no_errors(own_redis_server: RedisServer) -> None:
    with own_redis_server.admin() as admin:
        before = admin.info("stats")["total_error_replies"]
        async with RedisRegistry(own_redis_server.url) as registry:
            await registry.list()
        assert admin.info("stats")["total_error_replies"] == before


# --- the client ---


async def test_a_passed_client_stays_open(redis_store: RedisStore) -> None:
    client = aioredis.Redis.from_url(redis_store.url)
    async with RedisRegistry(client=client, prefix=redis_store.prefix) as registry:
        assert registry.url is None
        await registry.register(AgentInfo("a"))
        assert [agent.id for agent in await registry.list()] == ["a"]
    assert await client.ping()
    await client.aclose()


async def test_a_client_that_decodes_is_refused(redis_url: str) -> None:
    client = aioredis.Redis.from_url(redis_url, decode_responses=True)
    with pytest.raises(ConfigurationError, match="decode_responses=False"):
        RedisRegistry(client=client)
    await client.aclose()


async def test_db_and_password_override_the_url() -> None:
    with RedisServer("--requirepass", "right") as server:
        url = server.url.replace("redis://", "redis://:wr%6Fng@")
        async with RedisRegistry(url, password="right", db=3) as registry:
            await registry.register(AgentInfo("a"))
        client = aioredis.Redis.from_url(server.url.replace("/0", "/3"), password="right")
        assert set(await client.keys()) == {b"agentic:agent:a", b"agentic:incarnation"}
        await client.aclose()


async def test_a_wrong_password_is_rejected_at_once_and_not_shown() -> None:
    with RedisServer("--requirepass", "right") as server:
        registry = RedisRegistry(server.url.replace("redis://", "redis://user:s3cr3t@"))
        with pytest.raises(BackendError, match="^failed to connect to Redis: ") as caught:
            await registry.open()
    shown = repr(registry) + str(registry.url) + "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in shown
    assert "***" in repr(registry)


# --- a failing server ---


async def test_a_closed_port_is_an_error_at_open(own_redis_server: RedisServer) -> None:
    own_redis_server.stop()
    registry = RedisRegistry(own_redis_server.url)
    with pytest.raises(BackendError, match="^failed to connect to Redis: ") as caught:
        await registry.open()
    assert caught.value.__cause__ is not None
    own_redis_server.start()
    async with registry:
        assert await registry.list() == []


async def test_a_server_that_hangs_is_an_error_within_the_timeout(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=0.5) as registry:
        await registry.register(AgentInfo("a"))
        own_redis_server.pause()
        for call in (
            registry.heartbeat("a"),
            registry.get("a"),
            registry.register(AgentInfo("b")),
            registry.list(),
            registry.reap(1),
        ):
            with pytest.raises(BackendError, match="did not answer within 0.5 s"):
                await call
        with pytest.raises(BackendError, match="^failed to connect to Redis: no answer within 0.5 s"):
            await RedisRegistry(own_redis_server.url, timeout=0.5).open()
        own_redis_server.resume()

        async def answers() -> bool:
            try:
                return bool(await registry.list())
            except BackendError:
                return False

        await wait_until(answers, "the server answers again")
        await registry.heartbeat("a")


async def test_a_restarted_server_is_used_again_at_once(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        await registry.register(AgentInfo("a"))
        own_redis_server.stop()
        for call in (
            registry.list(),
            registry.get("a"),
            registry.heartbeat("a"),
            registry.reap(1),
            registry.register(AgentInfo("a")),
        ):
            with pytest.raises(BackendError, match="^Redis failed: "):
                await call
        own_redis_server.start()
        assert await registry.list() == []
        with pytest.raises(AgentNotFoundError):
            await registry.heartbeat("a")
        await registry.register(AgentInfo("a"))


async def test_a_connection_that_was_cut_while_idle_is_replaced(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        await registry.register(AgentInfo("a"))
        for _ in range(20):
            redis_store.client.client_kill_filter(_type="normal", skipme=True)
            await registry.heartbeat("a")
            redis_store.client.client_kill_filter(_type="normal", skipme=True)
            assert (await registry.get("a")).id == "a"


async def test_cancelled_calls_do_not_mix_up_replies(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        ids = [f"agent-{index}" for index in range(50)]
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))

        async def ask(number: int) -> None:
            agent_id = ids[number % 50]
            assert (await registry.get(agent_id)).id == agent_id

        for round_ in range(100):
            tasks = [asyncio.create_task(ask(number)) for number in range(20)]
            for turn in range(round_ % 7):
                await asyncio.sleep(0.0002 * (turn % 3))
            for task in tasks[:: 1 + round_ % 3]:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError)
        await asyncio.gather(*(ask(number) for number in range(200)))


NAIVE = '{"reason":"r","by":"","drained_at":"2026-01-01T00:00:00","ends_at":"2099-01-01T00:00:00"}'


async def test_a_damaged_drain_still_drains(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        await registry.register(AgentInfo("a"))
        await registry.drain("a", reason="r")
        for damaged in ("{", "[]", '{"reason":1}', b"\xff", '{"reason":"r","by":"","drained_at":"x"}', NAIVE):
            redis_store.client.hset(f"{redis_store.prefix}:drains", "a", damaged)
            assert (await registry.drains())["a"].reason.startswith("the stored order cannot be read")
            for agent in (await registry.get("a"), *await registry.list()):
                assert not agent.ready
            assert (await registry.heartbeat("a")).draining is not None
        assert await registry.resume("a")
        assert await registry.heartbeat("a") == Beat()
        assert (await registry.get("a")).ready

"""Pages in Redis, whose keys have no order: the cache of a walk's ids, and walks without it."""

from __future__ import annotations

import pytest

from agentic import AgentInfo, BackendUnavailableError, RedisRegistry
from agentic.backends.redis import ids as ordered_ids
from agentic.testing import RedisServer
from agentic.testing.contract.base import fill
from agentic.testing.contract.pages import paged_ids, pages_of
from tests.support.stores import RedisStore


@pytest.fixture
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache only a few ids, and only for two walks."""
    monkeypatch.setattr(ordered_ids, "WINDOW", 7)
    monkeypatch.setattr(ordered_ids, "MAX_WALKS", 2)
    monkeypatch.setattr(ordered_ids, "KEYS_PAGE", 5)


@pytest.mark.usefixtures("_small_windows")
@pytest.mark.parametrize("limit", [1, 6, 7, 8, 50])
async def test_walks_dropped_from_the_cache_continue_correctly(redis_store: RedisStore, limit: int) -> None:
    async with redis_store.make() as registry:
        ids = sorted(await fill(registry, 103))
        walks = [pages_of(registry, limit) for _ in range(4)]
        found: list[list[str]] = [[] for _ in walks]
        for _ in range(103):
            for number, walk in enumerate(walks):
                page = await anext(walk, None)
                found[number] += [] if page is None else [agent.id for agent in page.agents]
        assert found == [ids] * 4


async def test_a_walk_of_many_pages_scans_the_keys_once(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        ids = sorted(await fill(registry, 3000))
        with own_redis_server.admin() as client:
            client.config_resetstat()
            assert await paged_ids(registry, 50) == ids
            assert client.info("commandstats")["cmdstat_scan"]["calls"] <= 3


async def test_the_cache_of_walks_is_bounded(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        await fill(registry, 30)
        for _ in range(3 * ordered_ids.MAX_WALKS):
            await registry.page(limit=10)
        remembered = registry.backend._ordered_ids._windows  # noqa: SLF001  memory use is not observable otherwise
        assert len(remembered) == ordered_ids.MAX_WALKS
        assert await paged_ids(registry, 10)
        assert len(remembered) == ordered_ids.MAX_WALKS - 1  # A finished walk is dropped from the cache.


@pytest.mark.usefixtures("_small_windows")
async def test_a_restart_between_pages_hides_no_agent() -> None:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        async with RedisRegistry(server.url, ttl=None) as registry:
            ids = sorted(await fill(registry, 60))
            found = []
            async for page in pages_of(registry, 10):
                found += [agent.id for agent in page.agents]
                if len(found) == 30:
                    server.stop()
                    server.start()
            assert found == ids


async def test_a_page_of_a_server_that_hangs_ends_within_the_timeout(own_redis_server: RedisServer) -> None:
    async with (
        RedisRegistry(own_redis_server.url, timeout=20) as patient,
        RedisRegistry(own_redis_server.url, timeout=1) as registry,
    ):
        await fill(patient, 10)
        cursor = (await patient.page(limit=5)).cursor
        own_redis_server.pause()
        for going_on in (None, cursor):
            with pytest.raises(BackendUnavailableError, match="did not answer within 1 s"):
                await registry.page(going_on)
        own_redis_server.resume()
        assert len((await patient.page(cursor)).agents) == 5


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_corrupt_keys_are_counted_once_and_end_no_walk(redis_store: RedisStore, limit: int) -> None:
    async with redis_store.make() as registry:
        for agent_id in "abc":
            await registry.register(AgentInfo(agent_id))
        family = redis_store.prefix.encode() + b":agent:"
        for encoded in (b"", b"a\xff", b"\xff\xfe", b"b" * 600, b"b" * 512 + b"c"):
            redis_store.client.set(family + encoded, "no JSON")
        redis_store.client.rpush(family + b"list", "x")
        assert await paged_ids(registry, limit) == ["a", "b", "c"]
        expected = registry.corrupt_records
        await registry.list()
        assert registry.corrupt_records == expected + 6

"""The contract of AgentRegistry.page on every store: each agent that stays once, whatever else happens."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import msgspec
import pytest

from agentic import (
    AgentInfo,
    AgentRegistry,
    BackendUnavailableError,
    ConfigurationError,
    Page,
    RedisRegistry,
    RegistryClosedError,
    SQLiteRegistry,
)
from agentic.backends.redis import ids as ordered_ids
from agentic.page import MAX_PAGE
from tests.redis_server import RedisServer
from tests.stores import LONG_AGO, MemoryStore, RedisStore, Store

STRANGE_IDS = [
    "\x00",
    " ",
    "A",
    "a",
    "a" * 512,
    "ab",
    "b\n",
    "worker:host-1:0f",
    "z",
    "é",
    "\u2028",
    "\ufffd",
    "😀",
    "😀" * 128,
]
"""Of any length and from all of Unicode; not in an order that a sort of UTF-16 would give."""


async def fill(registry: AgentRegistry, count: int) -> list[str]:
    ids = [f"agent-{index * 7919 % count:05}" for index in range(count)]
    await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
    return sorted(ids)


def is_private(store: Store) -> bool:
    """Return whether only the registry object itself sees its agents: no other one can go on, or damage a record."""
    return isinstance(store, MemoryStore) or getattr(store, "_path", "") == ":memory:"


async def pages_of(registry: AgentRegistry, limit: int = 500) -> AsyncIterator[Page]:
    page = await registry.page(limit=limit)
    yield page
    while page.cursor is not None:
        page = await registry.page(page.cursor, limit)
        yield page


async def walked(registry: AgentRegistry, limit: int = 500) -> list[str]:
    return [agent.id async for page in pages_of(registry, limit) for agent in page.agents]


@pytest.mark.parametrize(
    ("count", "limit"), [(0, 5), (1, 1), (9, 4), (12, 4), (12, MAX_PAGE), (1203, 500), (1203, 700)]
)
async def test_pages_are_full_in_the_order_of_ids_and_end_with_the_last_agent(
    registry: AgentRegistry, count: int, limit: int
) -> None:
    ids = await fill(registry, count)
    pages = [page async for page in pages_of(registry, limit)]
    assert [agent.id for page in pages for agent in page.agents] == ids
    sizes = [len(page.agents) for page in pages]
    assert sizes == ([limit] * (count // limit) + [count % limit] * bool(count % limit) or [0])
    listed = {agent.id: agent for agent in await registry.list()}
    assert all(agent == listed[agent.id] for page in pages for agent in page.agents)


@pytest.mark.parametrize("limit", [1, 3, 500])
async def test_any_ids_are_paged_through_and_a_cursor_suits_a_url(registry: AgentRegistry, limit: int) -> None:
    await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in STRANGE_IDS))
    pages = [page async for page in pages_of(registry, limit)]
    assert [agent.id for page in pages for agent in page.agents] == sorted(STRANGE_IDS)
    cursors = [page.cursor for page in pages if page.cursor is not None]
    assert all(len(cursor) <= 700 and cursor.replace("-", "").replace("_", "").isalnum() for cursor in cursors)
    assert all(cursor.isascii() for cursor in cursors)


@pytest.mark.parametrize("seed", range(6))
async def test_agents_that_stay_are_given_once_while_others_come_and_go(store: Store, seed: int) -> None:
    """Each page is asked for in another registry object where the store can have several, and some are asked twice."""
    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(store.make())
        second = first if is_private(store) else await stack.enter_async_context(store.make())
        staying = set(await fill(first, 300))
        passing: list[str] = []
        cursor, given, is_over = None, [], False
        while not is_over:
            registry = chance.choice((first, second))
            limit = chance.randint(1, 60)
            page = await registry.page(cursor, limit)
            if chance.random() < 0.2:
                again = await registry.page(cursor, limit)
                assert {agent.id for agent in again.agents} & staying <= {agent.id for agent in page.agents}
            given += [agent.id for agent in page.agents]
            cursor, is_over = page.cursor, page.cursor is None
            come = [f"agent-{chance.randrange(300):05}-{chance.random()}" for _ in range(chance.randint(0, 40))]
            go = chance.sample(passing, len(passing) // 2)
            passing = [*set(passing).difference(go), *come]
            stay = chance.sample(sorted(staying), 5)
            await asyncio.gather(*(first.register(AgentInfo(agent_id)) for agent_id in come + stay[:2]))
            await asyncio.gather(*map(first.deregister, go), *map(second.heartbeat, stay[2:4]))
            await second.update(stay[4], name=f"{chance.random()}")
        assert len(given) == len(set(given))
        assert staying <= set(given)


async def test_an_agent_is_in_each_walk_that_begins_after_its_registration(registry: AgentRegistry) -> None:
    await fill(registry, 6)
    older = await registry.page(limit=2)
    await registry.register(AgentInfo("agent-00003-new"))
    newer = await registry.page(limit=2)
    for first, may_lack_it in ((newer, False), (older, True)):
        ids, cursor = [agent.id for agent in first.agents], first.cursor
        while cursor is not None:
            page = await registry.page(cursor, 2)
            ids, cursor = [*ids, *(agent.id for agent in page.agents)], page.cursor
        assert "agent-00003-new" in ids or may_lack_it
        assert set(ids) - {"agent-00003-new"} == {f"agent-{index:05}" for index in range(6)}


async def test_an_agent_that_is_gone_is_in_no_page(store: Store) -> None:
    async with store.make(ttl=100) as registry:
        await registry.register(AgentInfo("a-gone"))
        await registry.register(AgentInfo("b", last_heartbeat=LONG_AGO))
        page = await registry.page(limit=1)
        await store.let_pass(101)
        await registry.register(AgentInfo("c"))
        assert [agent.id for agent in page.agents] == ["a-gone"]
        assert "b" not in [agent.id for agent in (await registry.page(page.cursor)).agents]
        assert await walked(registry, 1) == ["c"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 500])
async def test_a_corrupt_record_is_skipped_and_counted_once_a_walk(store: Store, limit: int) -> None:
    if is_private(store):
        return
    async with store.make() as registry:
        ids = await fill(registry, 12)
        for agent_id in (ids[0], ids[3], ids[4], ids[5], ids[11]):
            store.corrupt(agent_id)
        pages = [page async for page in pages_of(registry, limit)]
        assert [agent.id for page in pages for agent in page.agents] == [*ids[1:3], *ids[6:11]]
        assert all(len(page.agents) == limit for page in pages[:-1])
        assert registry.corrupt_records == 5


MALFORMED = [
    "",
    "a",
    "abcd",
    "YWJj",
    "agent-00001",
    "%",
    "é",
    "=" * 8,
    "A" * 700,
    "A" * 100_000,
    "\ud800",
    5,
    b"AAAA",
    True,
    ("a",),
]


@pytest.mark.parametrize("cursor", MALFORMED, ids=lambda cursor: repr(cursor)[:12])
async def test_what_is_no_cursor_is_refused_before_any_io(store: Store, cursor: object) -> None:
    with pytest.raises(ConfigurationError, match="^cursor: ") as caught:
        await store.make().page(cursor)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


async def test_a_cursor_that_was_altered_is_refused(registry: AgentRegistry) -> None:
    await fill(registry, 2)
    cursor = (await registry.page(limit=1)).cursor
    assert cursor is not None
    for altered in (cursor[1:], cursor[:-4], cursor.swapcase(), cursor + cursor, cursor + "AAAA"):
        with pytest.raises(ConfigurationError, match="^cursor: must be one that a page"):
            await registry.page(altered)


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1, 10**30, 1.5, "5", None, True])
async def test_a_limit_out_of_range_is_refused_before_any_io(store: Store, limit: object) -> None:
    with pytest.raises(ConfigurationError, match="^limit: must be "):
        await store.make().page(limit=limit)  # type: ignore[arg-type]


async def test_a_page_of_a_registry_that_is_not_open_says_so(store: Store) -> None:
    with pytest.raises(RegistryClosedError):
        await store.make().page()


async def test_closing_lets_a_page_under_way_finish(store: Store) -> None:
    registry = store.make()
    await registry.open()
    ids = await fill(registry, 20)
    paging = asyncio.create_task(registry.page())
    await asyncio.sleep(0)
    await registry.aclose()
    assert [agent.id for agent in (await paging).agents] == ids


def test_a_page_is_immutable_and_goes_as_json() -> None:
    page = Page((AgentInfo("a"),), "cursor")
    with pytest.raises(AttributeError):
        page.cursor = None  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(page), type=Page) == page


# --- SQLite ---


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_rows_whose_id_is_no_text_are_counted_once_and_end_no_walk(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "registry.db"
    async with SQLiteRegistry(path) as registry:
        await registry.backend.insert([AgentInfo("a"), AgentInfo("b"), AgentInfo("c")])
        with closing(sqlite3.connect(path)) as db, db:
            for value in ("NULL", "x'00'", "x'ff'", "CAST(x'61ff' AS TEXT)", "CAST(x'ff61' AS TEXT)"):
                db.execute(f"INSERT INTO agents (id, last_heartbeat) VALUES ({value}, '2026-02-20T11:41:00.000000Z')")
        assert await walked(registry, limit) == ["a", "b", "c"]
        assert registry.corrupt_records == 5
        assert len(await registry.list()) == 3
        assert registry.corrupt_records == 10


async def test_a_row_moved_by_a_vacuum_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    async with SQLiteRegistry(path) as registry:
        ids = await fill(registry, 100)
        page = await registry.page(limit=40)
        for agent_id in ids[10:60]:
            await registry.deregister(agent_id)
        with closing(sqlite3.connect(path)) as db:
            db.execute("VACUUM")
        assert [agent.id for agent in (await registry.page(page.cursor)).agents] == ids[60:]


# --- Redis, which keeps no order ---


@pytest.fixture
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few ids are remembered, of two walks alone."""
    monkeypatch.setattr(ordered_ids, "WINDOW", 7)
    monkeypatch.setattr(ordered_ids, "MAX_WALKS", 2)
    monkeypatch.setattr(ordered_ids, "KEYS_PAGE", 5)


@pytest.mark.usefixtures("_small_windows")
@pytest.mark.parametrize("limit", [1, 6, 7, 8, 50])
async def test_walks_that_are_forgotten_find_their_place_again(redis_store: RedisStore, limit: int) -> None:
    async with redis_store.make() as registry:
        ids = await fill(registry, 103)
        walks = [pages_of(registry, limit) for _ in range(4)]
        found: list[list[str]] = [[] for _ in walks]
        for _ in range(103):
            for number, walk in enumerate(walks):
                page = await anext(walk, None)
                found[number] += [] if page is None else [agent.id for agent in page.agents]
        assert found == [ids] * 4


async def test_a_walk_scans_the_keys_once_however_many_pages_it_has(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url) as registry:
        ids = await fill(registry, 3000)
        with own_redis_server.admin() as client:
            client.config_resetstat()
            assert await walked(registry, 50) == ids
            assert client.info("commandstats")["cmdstat_scan"]["calls"] <= 3


async def test_what_a_registry_remembers_of_walks_is_bounded(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        await fill(registry, 30)
        for _ in range(3 * ordered_ids.MAX_WALKS):
            await registry.page(limit=10)
        remembered = registry.backend._ordered_ids._windows
        assert len(remembered) == ordered_ids.MAX_WALKS
        assert await walked(registry, 10)
        assert len(remembered) == ordered_ids.MAX_WALKS - 1  # What has come to its end is forgotten.


@pytest.mark.usefixtures("_small_windows")
async def test_a_restart_amid_the_pages_hides_nobody() -> None:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        async with RedisRegistry(server.url, ttl=None) as registry:
            ids = await fill(registry, 60)
            found = []
            async for page in pages_of(registry, 10):
                found += [agent.id for agent in page.agents]
                if len(found) == 30:
                    server.stop()
                    server.start()
            assert found == ids


async def test_a_page_of_a_server_that_hangs_ends_within_the_timeout(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=0.5) as registry:
        await fill(registry, 10)
        cursor = (await registry.page(limit=5)).cursor
        own_redis_server.pause()
        for going_on in (None, cursor):
            with pytest.raises(BackendUnavailableError, match="did not answer within 0.5 s"):
                await registry.page(going_on)
        own_redis_server.resume()
        assert len((await registry.page(cursor)).agents) == 5


@pytest.mark.parametrize("limit", [1, 2, 500])
async def test_keys_that_are_no_agents_are_counted_once_and_end_no_walk(redis_store: RedisStore, limit: int) -> None:
    async with redis_store.make() as registry:
        for agent_id in "abc":
            await registry.register(AgentInfo(agent_id))
        family = redis_store.prefix.encode() + b":agent:"
        for encoded in (b"", b"a\xff", b"\xff\xfe", b"b" * 600, b"b" * 512 + b"c"):
            redis_store.client.set(family + encoded, "no JSON")
        redis_store.client.rpush(family + b"list", "x")
        assert await walked(registry, limit) == ["a", "b", "c"]
        expected = registry.corrupt_records
        await registry.list()
        assert registry.corrupt_records == expected + 6

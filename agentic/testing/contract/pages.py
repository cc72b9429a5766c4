"""Pages of the fleet: agents that stay appear once, in order, while others are registered and deregistered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from agentic.agent import AgentInfo
from agentic.errors import ConfigurationError, RegistryClosedError
from agentic.page import MAX_PAGE, Page
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import Contract, fill
from agentic.testing.store import StoreUnderTest

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
"""Short, long, and from all of Unicode; sorted by UTF-16 they would be in another order."""

MALFORMED_CURSORS = [
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
]


async def pages_of(registry: AgentRegistry, limit: int = 500) -> AsyncIterator[Page]:
    """Yield the pages of a walk."""
    page = await registry.page(limit=limit)
    yield page
    while page.cursor is not None:
        page = await registry.page(page.cursor, limit)
        yield page


async def paged_ids(registry: AgentRegistry, limit: int = 500) -> list[str]:
    """Return the ids of all agents, in the order of the pages of a walk."""
    return [agent.id async for page in pages_of(registry, limit) for agent in page.agents]


class Pages(Contract):
    """The fleet, page by page."""

    @pytest.mark.parametrize(
        ("count", "limit"), [(0, 5), (1, 1), (9, 4), (12, 4), (12, MAX_PAGE), (1203, 500), (1203, 700)]
    )
    async def test_pages_are_full_in_the_order_of_ids_and_end_with_the_last_agent(
        self, registry: AgentRegistry, count: int, limit: int
    ) -> None:
        ids = sorted(await fill(registry, count))
        pages = [page async for page in pages_of(registry, limit)]
        assert [agent.id for page in pages for agent in page.agents] == ids
        assert [len(page.agents) for page in pages] == (
            [limit] * (count // limit) + [count % limit] * bool(count % limit) or [0]
        )
        listed = {agent.id: agent for agent in await registry.list()}
        assert all(agent == listed[agent.id] for page in pages for agent in page.agents)

    @pytest.mark.parametrize("limit", [1, 3, 500])
    async def test_any_ids_can_be_paged_through_and_a_cursor_suits_a_url(
        self, registry: AgentRegistry, limit: int
    ) -> None:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in STRANGE_IDS))
        pages = [page async for page in pages_of(registry, limit)]
        assert [agent.id for page in pages for agent in page.agents] == sorted(STRANGE_IDS)
        for cursor in (page.cursor for page in pages if page.cursor is not None):
            assert len(cursor) <= 700
            assert cursor.isascii()
            assert cursor.replace("-", "").replace("_", "").isalnum()

    @pytest.mark.parametrize("seed", range(6))
    async def test_agents_that_stay_are_paged_once_while_others_come_and_go(
        self, store: StoreUnderTest, seed: int
    ) -> None:
        """Pages are fetched by two registry objects, if the store can be shared, and some of them twice."""
        chance = random.Random(seed)
        async with AsyncExitStack() as stack:
            first = second = await stack.enter_async_context(store.make())
            if "sharing" not in store.lacks:
                second = await stack.enter_async_context(store.make())
            staying = await fill(first, 300)
            passing: set[str] = set()
            given: list[str] = []
            cursor: str | None = None
            is_over = False
            while not is_over:
                registry, limit = chance.choice((first, second)), chance.randint(1, 60)
                page = await registry.page(cursor, limit)
                if chance.random() < 0.2:
                    again = await registry.page(cursor, limit)
                    assert staying & {agent.id for agent in again.agents} <= {agent.id for agent in page.agents}
                given += [agent.id for agent in page.agents]
                cursor, is_over = page.cursor, page.cursor is None
                come = [f"agent-{chance.randrange(300):05}-{chance.random()}" for _ in range(chance.randint(0, 40))]
                go = chance.sample(sorted(passing), len(passing) // 2)
                stay = chance.sample(sorted(staying), 5)
                await asyncio.gather(*(first.register(AgentInfo(agent_id)) for agent_id in come + stay[:2]))
                await asyncio.gather(*map(first.deregister, go), *map(second.heartbeat, stay[2:4]))
                await second.update(stay[4], name=f"{chance.random()}")
                passing = passing.difference(go).union(come)
            assert len(given) == len(set(given))
            assert staying <= set(given)

    async def test_an_agent_is_in_each_walk_that_begins_after_its_registration(self, registry: AgentRegistry) -> None:
        ids = sorted(await fill(registry, 6))
        older = await registry.page(limit=2)
        await registry.register(AgentInfo("agent-00003-new"))
        newer = await registry.page(limit=2)
        for begun, must_have_it in ((newer, True), (older, False)):
            found, cursor = [agent.id for agent in begun.agents], begun.cursor
            while cursor is not None:
                page = await registry.page(cursor, 2)
                found, cursor = [*found, *(agent.id for agent in page.agents)], page.cursor
            assert [agent_id for agent_id in found if agent_id != "agent-00003-new"] == ids
            assert "agent-00003-new" in found or not must_have_it

    async def test_an_agent_that_is_gone_is_in_no_page(self, clocked_store: StoreUnderTest) -> None:
        async with clocked_store.make(ttl=100) as registry:
            await registry.register(AgentInfo("a"))
            await registry.register(AgentInfo("b"))
            page = await registry.page(limit=1)
            assert [agent.id for agent in page.agents] == ["a"]
            await clocked_store.pass_time(101)
            await registry.register(AgentInfo("c"))
            assert "b" not in [agent.id for agent in (await registry.page(page.cursor)).agents]
            assert await paged_ids(registry, 1) == ["c"]

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 500])
    async def test_a_corrupt_record_is_skipped_and_counted_once_in_a_walk_by_pages(
        self, store: StoreUnderTest, limit: int
    ) -> None:
        store.require("corruption")
        async with store.make() as registry:
            ids = sorted(await fill(registry, 12))
            for number in (0, 3, 4, 5, 11):
                await store.corrupt(ids[number])
            pages = [page async for page in pages_of(registry, limit)]
            assert [agent.id for page in pages for agent in page.agents] == [*ids[1:3], *ids[6:11]]
            assert all(len(page.agents) == limit for page in pages[:-1])
            assert registry.corrupt_records == 5

    @pytest.mark.parametrize("cursor", MALFORMED_CURSORS, ids=lambda cursor: repr(cursor)[:12])
    async def test_a_malformed_cursor_is_refused_before_any_io(self, store: StoreUnderTest, cursor: object) -> None:
        with pytest.raises(ConfigurationError, match="^cursor: ") as caught:
            await store.make().page(cursor)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 200

    async def test_a_cursor_that_was_altered_is_refused(self, registry: AgentRegistry) -> None:
        await fill(registry, 2)
        cursor = (await registry.page(limit=1)).cursor
        assert cursor is not None
        for altered in (cursor[1:], cursor[:-4], cursor.swapcase(), cursor + cursor, cursor + "AAAA"):
            with pytest.raises(ConfigurationError, match="^cursor: must be one that a page"):
                await registry.page(altered)

    @pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1, 10**30, 1.5, "5", None, True])
    async def test_a_limit_out_of_range_is_refused_before_any_io(self, store: StoreUnderTest, limit: object) -> None:
        with pytest.raises(ConfigurationError, match="^limit: must be "):
            await store.make().page(limit=limit)  # type: ignore[arg-type]

    async def test_a_page_of_a_registry_that_is_not_open_is_refused(self, store: StoreUnderTest) -> None:
        with pytest.raises(RegistryClosedError):
            await store.make().page()

    async def test_closing_lets_a_page_under_way_finish(self, store: StoreUnderTest) -> None:
        registry = store.make()
        await registry.open()
        ids = sorted(await fill(registry, 20))
        paging = asyncio.create_task(registry.page())
        await asyncio.sleep(0)
        await registry.aclose()
        assert [agent.id for agent in (await paging).agents] == ids

"""Open, close and copy a registry, and use it in another event loop."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections.abc import Callable
from contextlib import aclosing

import pytest

from agentic.agent import AgentInfo
from agentic.errors import RegistryClosedError, RegistryError
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import LONG_AGO, Contract, fill
from agentic.testing.contract.primitives import CALLS
from agentic.testing.store import StoreUnderTest

DUPLICATES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda each: pickle.loads(pickle.dumps(each))}


class Lifecycle(Contract):
    """The life cycle of a registry."""

    async def test_every_call_on_a_registry_that_is_not_open_raises(self, store: StoreUnderTest) -> None:
        registry = store.make()
        for _ in range(2):
            for _, make_call in CALLS.values():
                with pytest.raises(RegistryClosedError):
                    await make_call(registry)
            async with registry:
                pass
            await registry.aclose()

    async def test_an_open_registry_cannot_be_opened_again(self, registry: AgentRegistry) -> None:
        with pytest.raises(RegistryError, match="open already"):
            await registry.open()
        await registry.register(AgentInfo("a"))

    async def test_a_registry_can_be_opened_again_after_it_was_closed(self, store: StoreUnderTest) -> None:
        registry = store.make()
        for _ in range(2):
            async with registry:
                await registry.register(AgentInfo("a"))
                assert (await registry.get("a")).id == "a"

    async def test_a_registry_is_not_opened_while_it_closes(self, registry: AgentRegistry) -> None:
        call = asyncio.create_task(registry.register(AgentInfo("a")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(registry.aclose())
        await asyncio.sleep(0)
        with pytest.raises(RegistryError, match="not yet closed"):
            await registry.open()
        await asyncio.gather(call, closing)
        await registry.open()

    async def test_closing_lets_walks_and_calls_finish(self, store: StoreUnderTest) -> None:
        registry = store.make()
        await registry.open()
        ids = await fill(registry, 1200, last_heartbeat=LONG_AGO)
        walks = asyncio.gather(registry.reap(60), registry.list())
        calls = asyncio.gather(*(registry.get(agent_id) for agent_id in ids))
        await asyncio.sleep(0)
        await registry.aclose()
        reaped, listed = await walks
        assert set(reaped) == {agent.id for agent in listed} == ids
        assert {agent.id for agent in await calls} == ids

    async def test_a_scan_left_open_ends_with_an_error_when_the_registry_is_closed(self, store: StoreUnderTest) -> None:
        registry = store.make(timeout=3)
        await registry.open()
        await fill(registry, 1200)
        async with aclosing(registry.scan()) as agents:
            await anext(agents)
            await registry.aclose()
            with pytest.raises(RegistryClosedError):
                async for _ in agents:
                    pass

    @pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
    async def test_a_registry_is_copied_and_pickled_only_while_it_is_closed(
        self, store: StoreUnderTest, duplicate: Callable[[AgentRegistry], AgentRegistry]
    ) -> None:
        registry = store.make()
        for _ in range(2):
            copied = duplicate(registry)
            async with registry:
                await registry.register(AgentInfo("a"))
                with pytest.raises(TypeError, match="an open registry cannot be copied or pickled"):
                    duplicate(registry)
                async with copied:
                    assert (await copied.register(AgentInfo("b"))).id == "b"
                await registry.heartbeat("a")

    def test_a_registry_used_in_another_event_loop_raises(self, store: StoreUnderTest) -> None:
        registry = store.make()

        async def use() -> None:
            with pytest.raises(RegistryClosedError, match="opened in another event loop: open one in each"):
                await registry.get("a")
            with pytest.raises(RegistryClosedError, match="opened in another event loop"):
                await registry.list()

        with asyncio.Runner() as first, asyncio.Runner() as second:
            first.run(registry.open())
            second.run(use())
            first.run(registry.aclose())

    @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_registry_whose_event_loop_has_ended_can_be_opened_anew(self, store: StoreUnderTest) -> None:
        registry = store.make()

        async def use() -> None:
            async with registry:
                await registry.register(AgentInfo("a"))

        asyncio.run(registry.open())
        asyncio.run(use())
        for _ in range(5):
            gc.collect()  # Report connections that the first loop left open in this test, not in a later one.

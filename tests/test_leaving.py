"""Closing sessions and reapers while the store does not answer: time limits, and what is logged or reported."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from agentic import AgentInfo, AgentRegistry, Reaper, RedisRegistry, RegistryClosedError
from agentic.abc import Cursor, Step
from agentic.backends.memory import MemoryBackend
from agentic.deregistration_budget import DeregistrationBudget
from agentic.testing import RedisServer, wait_until
from tests.support.stores import LONG_AGO

TIMEOUT = 0.5
SIZE = 20


async def enter_sessions(stack: AsyncExitStack, registry: RedisRegistry) -> None:
    for number in range(SIZE):
        await stack.enter_async_context(registry.session(AgentInfo(f"agent-{number}")))


@pytest.mark.parametrize("cancelled", [False, True])
async def test_sessions_that_leave_a_hanging_store_together_wait_for_one_timeout(
    own_redis_server: RedisServer, cancelled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            registry = await stack.enter_async_context(RedisRegistry(own_redis_server.url, timeout=TIMEOUT))
            await stack.enter_async_context(Reaper(registry))
            await enter_sessions(stack, registry)
            own_redis_server.pause()
            leaves_at.append(time.monotonic())
            if cancelled:
                await asyncio.Event().wait()

    leaves_at: list[float] = []
    running = asyncio.create_task(run())
    await wait_until(lambda: bool(leaves_at), "they are about to leave")
    if cancelled:
        running.cancel()
    await asyncio.wait([running])
    assert running.cancelled() == cancelled
    assert time.monotonic() - leaves_at[0] < SIZE * TIMEOUT / 2
    for number in range(SIZE):
        assert f"agent 'agent-{number}' could not be deregistered and will go offline" in caplog.text
    own_redis_server.resume()


async def test_deregistrations_beyond_the_budget_finish_in_the_background(own_redis_server: RedisServer) -> None:
    url = own_redis_server.url
    async with RedisRegistry(url, timeout=3) as registry, RedisRegistry(url) as other:
        registry.deregistration_budget = DeregistrationBudget(0.1)
        async with AsyncExitStack() as stack:
            await enter_sessions(stack, registry)
            own_redis_server.pause()
        own_redis_server.resume()

        async def none_is_left() -> bool:
            return await other.list() == []

        await wait_until(none_is_left, "every agent is deregistered")


async def test_the_budget_is_restored_when_the_store_answers() -> None:
    budget = DeregistrationBudget(0.5)

    async def is_waited_for() -> bool:
        """Return whether `wait` waits for a call that gets no answer."""
        began_at = time.monotonic()
        await budget.wait(answer(20, False))
        return time.monotonic() - began_at >= 0.5

    async def answer(seconds: float, answered: bool) -> bool:
        await asyncio.sleep(seconds)
        return answered

    assert await is_waited_for()
    assert not await is_waited_for()
    await budget.wait(answer(0, True))
    assert await is_waited_for()
    assert not await is_waited_for()
    budget.reset()
    assert await is_waited_for()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_a_deregistration_that_other_code_cancels_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(MemoryBackend):
        async def delete(self, ids: Any) -> Any:
            deleting.set()
            await asyncio.Event().wait()

    deleting = asyncio.Event()
    store = Hanging(timeout=0.2)
    store.is_immediate = False
    async with AgentRegistry(store) as registry:
        session = registry.session(AgentInfo("a"))
        await session.open()
        closing = asyncio.create_task(session.aclose())
        await deleting.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task(), closing}:
            task.cancel()
        await asyncio.wait([closing])
        await wait_until(lambda: "agent 'a' could not be deregistered" in caplog.text, "it is logged")


def slow_pages(url: str, pause: float = 0.1) -> RedisRegistry:
    """Return a registry with a timeout of 2 s, in which each page of a sweep takes this fraction of the timeout."""
    registry = RedisRegistry(url, timeout=2)
    sweep = registry.backend.sweep

    async def slow(ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        page = await sweep(ttl, cursor)
        await asyncio.sleep(2 * pause)
        return page

    registry.backend.sweep = slow  # type: ignore[method-assign]
    return registry


async def test_a_reaper_whose_registry_is_closed_reports_what_it_has_marked(own_redis_server: RedisServer) -> None:
    reported: list[str] = []
    async with RedisRegistry(own_redis_server.url) as other:
        await asyncio.gather(*(other.register(AgentInfo(f"a{n}", last_heartbeat=LONG_AGO)) for n in range(5000)))
        registry = slow_pages(own_redis_server.url, pause=0.4)
        await registry.open()
        reaping = asyncio.create_task(Reaper(registry, on_reaped=reported.extend).run())
        await wait_until(lambda: bool(reported), "the first page is reported")
        await registry.aclose()
        await asyncio.wait([reaping])
        assert isinstance(reaping.exception(), RegistryClosedError)
        offline = [agent.id for agent in await other.list() if agent.status == "offline"]
    assert len(reported) < 5000
    assert sorted(reported) == sorted(offline)


@pytest.mark.parametrize("pages", range(4))
async def test_a_reaper_that_ends_during_a_sweep_reports_what_it_has_marked(
    own_redis_server: RedisServer, pages: int
) -> None:
    reported: list[str] = []
    async with (
        RedisRegistry(own_redis_server.url) as other,
        slow_pages(own_redis_server.url) as registry,
    ):
        await asyncio.gather(*(other.register(AgentInfo(f"a{n}", last_heartbeat=LONG_AGO)) for n in range(3000)))
        async with Reaper(registry, on_reaped=reported.extend):
            await wait_until(lambda: len(reported) > 400 * pages, "so many pages are reported")
        offline = [agent.id for agent in await registry.list() if agent.status == "offline"]
    assert len(reported) < 3000
    assert sorted(reported) == sorted(offline)

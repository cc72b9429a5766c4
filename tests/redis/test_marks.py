"""Agents marked by a sweep that lost its reply are still reported, each once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agentic import AgentInfo, AgentStatus, BackendRejectedError, BackendUnavailableError, RedisRegistry
from agentic.backends.redis.scripts import SCRIPTS
from agentic.testing import RedisServer, wait_until
from tests.support.proxy import Proxy
from tests.support.stores import LONG_AGO

IDS = ["a", "b", "c"]
REAP = SCRIPTS["reap"].sha.encode()


@pytest.fixture
def server(own_redis_server: RedisServer) -> RedisServer:
    """A server that has the scripts, so that each call is one request."""
    for script in SCRIPTS.values():
        own_redis_server.admin().script_load(script.text)
    return own_redis_server


async def fill(registry: RedisRegistry) -> None:
    await asyncio.gather(*(registry.register(AgentInfo(agent_id, last_heartbeat=LONG_AGO)) for agent_id in IDS))


async def offline(registry: RedisRegistry) -> list[str]:
    return sorted(agent.id for agent in await registry.list() if agent.status is AgentStatus.OFFLINE)


async def lose_the_marks_answer(proxy: Proxy, registry: RedisRegistry, fault: str = "answers_to_lose") -> None:
    """Reap, and lose the reply to the request that marks the agents."""
    release = proxy.hold_requests(REAP)
    reaping = asyncio.create_task(registry.reap(60))
    await wait_until(lambda: bool(proxy.held), "the marks are on their way")
    setattr(proxy, fault, 1)
    release()
    with pytest.raises(BackendUnavailableError) as caught:
        await reaping
    proxy.delay = 0.0
    assert caught.value.reaped == ()


@pytest.mark.parametrize("fault", ["answers_to_lose", "answers_to_cut", "delay"])
async def test_agents_marked_by_a_call_with_a_lost_reply_are_reported_by_the_next_sweep(
    server: RedisServer, fault: str
) -> None:
    async with Proxy(server.port) as proxy, RedisRegistry(proxy.url, timeout=0.5) as registry:
        await fill(registry)
        await lose_the_marks_answer(proxy, registry, fault)
        assert await offline(registry) == IDS
        told: list[str] = []
        assert sorted(await registry.reap(60, on_marked=told.extend)) == sorted(told) == IDS
        assert await registry.reap(60) == []


async def test_agents_marked_by_a_late_request_are_reported(server: RedisServer) -> None:
    async with (
        Proxy(server.port) as proxy,
        RedisRegistry(proxy.url, timeout=0.5) as registry,
        RedisRegistry(server.url) as other,
    ):
        await fill(registry)
        release = proxy.hold_requests(REAP)
        with pytest.raises(BackendUnavailableError):
            await registry.reap(60)
        proxy.hold_requests(b"nothing more")
        await other.heartbeat("a")
        assert sorted(await registry.reap(60)) == ["b", "c"]
        await other.update("b", status=AgentStatus.BUSY)
        made = calls(server)
        release()
        await wait_until(lambda: calls(server) > made, "the late marks have arrived")
        assert await offline(other) == ["c"]
        assert await registry.reap(60) == ["b"]


def calls(server: RedisServer) -> int:
    stats: Any = server.admin().info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])


async def test_agents_marked_by_a_call_that_failed_half_way_are_reported_by_the_next_sweep(server: RedisServer) -> None:
    """Only some agents of a call need the missing permission; the others are already marked."""
    admin = server.admin()
    admin.execute_command("ACL", "SETUSER", "weak", "on", "nopass", "~*", "+@all", "-pttl")
    url = server.url.replace("redis://", "redis://weak:any@")
    async with RedisRegistry(server.url) as other, RedisRegistry(url) as registry:
        await fill(other)
        admin.set("agentic:agent:z", '{"id":"z","last_heartbeat":"2100-01-01T00:00:00Z"}')
        told: list[str] = []
        with pytest.raises(BackendRejectedError, match="lacks a permission"):
            await registry.reap(60, on_marked=told.extend)
        marked = await offline(other)
        admin.execute_command("ACL", "SETUSER", "weak", "+pttl")
        await registry.reap(60, on_marked=told.extend)
        assert set(marked) <= set(IDS)
        assert sorted(told) == await offline(other) == IDS


async def test_two_sweeps_of_one_registry_report_each_agent_once(server: RedisServer) -> None:
    async with Proxy(server.port) as proxy, RedisRegistry(proxy.url, timeout=2) as registry:
        await fill(registry)
        release = proxy.hold_requests(REAP)
        reaping = [asyncio.create_task(registry.reap(60)) for _ in range(2)]
        await wait_until(lambda: bool(proxy.held), "one sweep's marks are on their way")
        proxy.answers_to_lose = 1
        release()
        outcomes = await asyncio.gather(*reaping, return_exceptions=True)
        told = [agent_id for outcome in outcomes if isinstance(outcome, list) for agent_id in outcome]
        assert sorted(told) == IDS
        assert await registry.reap(60) == []


async def test_a_lost_write_during_a_sweep_does_not_change_its_report(server: RedisServer) -> None:
    """After a lost write, the registry queries the store, whose reply contains the marks of the last sweep."""
    async with Proxy(server.port) as proxy, RedisRegistry(proxy.url, timeout=2) as registry:
        await fill(registry)
        await registry.register(AgentInfo("alive"))
        await registry.heartbeat("alive")
        release = proxy.hold_requests(REAP)
        reaping = asyncio.create_task(registry.reap(60))
        await wait_until(lambda: bool(proxy.held), "the marks are on their way")
        proxy.hold_requests(b"nothing more")
        proxy.delay = 0.5
        release()
        await wait_until(lambda: proxy.delayed > 0, "the marks are made, and their answer is under way")
        proxy.delay, proxy.answers_to_lose = 0.0, 1
        with pytest.raises(BackendUnavailableError):
            await registry.update("alive", name="n")
        await registry.heartbeat("alive")
        assert sorted(await reaping) == IDS
        assert await registry.reap(60) == []


async def test_unreported_agents_are_logged_when_the_registry_closes(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(server.port) as proxy, RedisRegistry(server.url) as other:
        registry = RedisRegistry(proxy.url, timeout=0.5)
        await registry.open()
        await fill(registry)
        await lose_the_marks_answer(proxy, registry)
        with caplog.at_level(logging.WARNING):
            await registry.aclose()
        assert "3 agents were marked offline and reported to nobody: a, b, c" in caplog.text
        assert await other.reap(60) == []


async def test_a_registry_that_closes_while_the_store_is_away_reports_when_it_is_open_again(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(server.port) as proxy:
        registry = RedisRegistry(proxy.url, timeout=0.5)
        await registry.open()
        await fill(registry)
        await lose_the_marks_answer(proxy, registry)
        proxy.swallow()
        target, proxy.target = proxy.target, 1
        with caplog.at_level(logging.WARNING):
            await registry.aclose()
        assert "agents may have been marked offline and reported to nobody" in caplog.text
        proxy.target = target
        async with registry:
            assert sorted(await registry.reap(60)) == IDS

"""Requests that a network delivers late: an earlier write never takes effect after a later call was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentStatus,
    BackendUnavailableError,
    RedisRegistry,
)
from agentic.backends.redis_scripts import SCRIPTS
from tests.proxy import Proxy
from tests.redis_server import RedisServer
from tests.stores import LONG_AGO
from tests.waiting import wait_until

Call = Callable[[AgentRegistry], Awaitable[object]]


class Overtaken(NamedTuple):
    """A write that is delivered late, and a later call on its agent that was answered before that."""

    agent: AgentInfo
    script: str
    late: Call
    later: Call


async def absent(registry: AgentRegistry) -> None:
    with pytest.raises(AgentNotFoundError):
        await registry.get("a")


OVERTAKEN = {
    "update, update": Overtaken(
        AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.update("a", current_load=2)
    ),
    "update, register": Overtaken(
        AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.register(AgentInfo("a"))
    ),
    "update, get": Overtaken(AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.get("a")),
    "update, heartbeat": Overtaken(
        AgentInfo("a"), "update", lambda r: r.update("a", current_load=1), lambda r: r.heartbeat("a")
    ),
    "register, deregister": Overtaken(
        AgentInfo("a"), "register", lambda r: r.register(AgentInfo("a", "late")), lambda r: r.deregister("a")
    ),
    "register, get": Overtaken(AgentInfo("b"), "register", lambda r: r.register(AgentInfo("a")), absent),
    "deregister, register": Overtaken(
        AgentInfo("a"), "deregister", lambda r: r.deregister("a"), lambda r: r.register(AgentInfo("a"))
    ),
    "heartbeat of an offline agent, update": Overtaken(
        AgentInfo("a", status=AgentStatus.OFFLINE),
        "heartbeat_slow",
        lambda r: r.heartbeat("a"),
        lambda r: r.update("a", name="still offline"),
    ),
    "reap, heartbeat": Overtaken(
        AgentInfo("a", last_heartbeat=LONG_AGO),
        "reap",
        lambda r: r.reap(60),
        lambda r: r.update("a", status=AgentStatus.BUSY),
    ),
    "flush, register": Overtaken(
        AgentInfo("a"), "deregister", lambda r: r.flush(), lambda r: r.register(AgentInfo("a"))
    ),
}


@pytest.fixture
def server(own_redis_server: RedisServer) -> RedisServer:
    """A server that knows the scripts, so that a request which arrives late is not refused for lack of its script."""
    for script in SCRIPTS.values():
        own_redis_server.admin().script_load(script.text)
    return own_redis_server


def calls(server: RedisServer) -> int:
    stats: Any = server.admin().info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


@pytest.mark.parametrize("case", OVERTAKEN.values(), ids=OVERTAKEN)
async def test_a_late_write_does_not_overtake_a_later_call(server: RedisServer, case: Overtaken) -> None:
    async with (
        Proxy(server.port) as proxy,
        RedisRegistry(proxy.url, timeout=0.5) as registry,
        RedisRegistry(server.url) as other,
    ):
        await registry.register(case.agent)
        release = proxy.hold_requests(SCRIPTS[case.script].sha.encode())
        with pytest.raises(BackendUnavailableError):
            await case.late(registry)
        proxy.hold_requests(b"nothing more")
        await case.later(registry)
        before, made = await other.list(), calls(server)
        release()
        await wait_until(lambda: calls(server) > made, "the late request has arrived")
        assert await other.list() == before


async def test_an_ended_session_leaves_no_ghost(server: RedisServer) -> None:
    async with (
        Proxy(server.port) as proxy,
        RedisRegistry(proxy.url, timeout=0.5) as registry,
        RedisRegistry(server.url) as other,
    ):
        release = proxy.hold_requests(b'"name":"ghost"')
        session = registry.session(AgentInfo("a", name="ghost"))
        with pytest.raises(BackendUnavailableError):
            await session.open()
        proxy.hold_requests(b"nothing more")
        await absent(registry)
        made = calls(server)
        release()
        await wait_until(lambda: calls(server) > made, "the late registration has arrived")
        assert await other.list() == []


async def test_a_closed_registry_writes_nothing_more(server: RedisServer) -> None:
    """A process that has closed its registry leaves no agent behind, though its registration is delivered late."""
    async with Proxy(server.port) as proxy, RedisRegistry(server.url) as other:
        registry = RedisRegistry(proxy.url, timeout=0.5)
        await registry.open()
        release = proxy.hold_requests(b'"name":"ghost"')
        registering = asyncio.create_task(registry.register(AgentInfo("a", name="ghost")))
        await wait_until(lambda: bool(proxy.held), "the registration is on its way")
        proxy.hold_requests(b"nothing more")
        await registry.aclose()
        with pytest.raises(BackendUnavailableError):
            await registering
        made = calls(server)
        release()
        await wait_until(lambda: calls(server) > made, "the late registration has arrived")
        assert await other.list() == []


async def test_a_refused_write_is_sent_again(server: RedisServer) -> None:
    """A write of another agent that leaves before the loss is noticed and arrives after it: refused, then applied."""
    async with Proxy(server.port) as proxy, RedisRegistry(proxy.url, timeout=2) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in "ab"))
        release = proxy.hold_requests(SCRIPTS["update"].sha.encode())
        held = asyncio.create_task(registry.update("b", current_load=1))
        await wait_until(lambda: bool(proxy.held), "the update of b is on its way")
        proxy.hold_requests(b"nothing more")
        lost = asyncio.create_task(registry.deregister("a"))
        proxy.answers_to_lose = 1
        with pytest.raises(BackendUnavailableError):
            await lost
        await registry.register(AgentInfo("a"))
        release()
        assert (await held).current_load == 1
        assert (await registry.get("b")).current_load == 1

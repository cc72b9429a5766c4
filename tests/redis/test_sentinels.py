"""Sentinels: passwords, wrong credentials, and an unknown primary."""

from __future__ import annotations

import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from agentic import AgentInfo, BackendRejectedError, BackendUnavailableError, RedisRegistry, open_registry
from agentic.testing.servers import RedisServer, free_port, server_program
from tests.support.redis_fleet import SERVICE, SentinelTrio, wait_for

SERVERS, SENTINELS = "s3rvers", "s3ntinels"


class SentinelSetup:
    """A primary with a password, and one sentinel with or without a password."""

    def __init__(self, stack: ExitStack, password: str, user: str = "") -> None:
        self.server = stack.enter_context(RedisServer("--requirepass", SERVERS))
        self.port = free_port()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentic-sentinel-")))
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {folder}"]
        lines += [f"sentinel monitor {SERVICE} 127.0.0.1 {self.server.port} 1"]
        lines += [f"sentinel auth-pass {SERVICE} {SERVERS}"]
        if user:
            lines += [f"user {user} on >{password} allchannels +@all", "user default off"]
        elif password:
            lines += [f"requirepass {password}"]
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
        process = subprocess.Popen(
            [server_program(), str(folder / "sentinel.conf"), "--sentinel"], stdout=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        client = stack.enter_context(redis.Redis(port=self.port, username=user or None, password=password or None))
        wait_for(lambda: self._monitors(client), "the sentinel watches the primary")

    def _monitors(self, client: redis.Redis) -> bool:
        try:
            state: Any = client.sentinel_master(SERVICE)
        except redis.ConnectionError:
            return False
        return bool(state["flags"] == "master")

    def url(self, parameters: str = "", password: str = SERVERS) -> str:
        return f"redis+sentinel://:{password}@127.0.0.1:{self.port}/{SERVICE}{parameters}"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


async def opens(url: str) -> None:
    async with open_registry(url) as registry:
        await registry.register(AgentInfo("a"))
        assert [agent.id for agent in await registry.list()] == ["a"]


async def test_sentinels_without_a_password_get_none(stack: ExitStack) -> None:
    setup = SentinelSetup(stack, "")
    await opens(setup.url())
    with redis.Redis(port=setup.port) as sentinel:
        stats: Any = sentinel.info("errorstats")
        assert not stats


async def test_sentinels_with_the_servers_password_get_it(stack: ExitStack) -> None:
    await opens(SentinelSetup(stack, SERVERS).url())


async def test_sentinels_with_their_own_password_get_that(stack: ExitStack) -> None:
    await opens(SentinelSetup(stack, SENTINELS).url(f"?sentinel_password={SENTINELS}"))


async def test_sentinels_with_their_own_user_get_that(stack: ExitStack) -> None:
    setup = SentinelSetup(stack, SENTINELS, "fleet")
    await opens(setup.url(f"?sentinel_username=fleet&sentinel_password={SENTINELS}"))


async def test_a_wrong_or_missing_password_of_the_sentinels_is_rejected(stack: ExitStack) -> None:
    setup = SentinelSetup(stack, SENTINELS)
    for url in (setup.url(), setup.url("?sentinel_password=wr0ng"), setup.url().replace(f":{SERVERS}@", "")):
        with pytest.raises(BackendRejectedError, match="the sentinels refuse .*sentinel_password") as caught:
            await open_registry(url).open()
        message = str(caught.value)
        assert "\n" not in message
        assert f"127.0.0.1:{setup.port}" in message
        assert len(message) < 400
        shown = "".join(traceback.format_exception(caught.value))
        assert SERVERS not in shown
        assert "wr0ng" not in shown


async def test_a_service_unknown_to_the_sentinels_is_rejected(sentinel_trio: SentinelTrio) -> None:
    with pytest.raises(BackendRejectedError, match=f"know no service 'other'; they monitor: {SERVICE}"):
        await RedisRegistry(sentinel_trio.url.replace(f"/{SERVICE}", "/other")).open()


async def test_unreachable_sentinels_are_unavailable() -> None:
    with pytest.raises(BackendUnavailableError, match="the sentinels name no primary of 'fleet' at present") as caught:
        await RedisRegistry("redis+sentinel://127.0.0.1:1,127.0.0.1:2/fleet", timeout=1).open()
    assert "object at" not in str(caught.value)

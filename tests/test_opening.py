"""Opening a registry: by `async with`, by `await`, and while its store is not running yet."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import weakref
from contextlib import closing
from pathlib import Path

import pytest

from agentic import (
    AgentInfo,
    BackendRejectedError,
    BackendUnavailableError,
    MemoryRegistry,
    RegistryClosedError,
    RegistryOpenError,
    open_registry,
)
from agentic.testing import RedisServer, StoreUnderTest, wait_until


async def test_an_awaited_registry_is_open(store: StoreUnderTest) -> None:
    registry = await store.make()
    await registry.register(AgentInfo("a"))
    assert [agent.id for agent in await registry.list()] == ["a"]
    with pytest.raises(RegistryOpenError):
        await registry
    await registry.aclose()
    with pytest.raises(RegistryClosedError):
        await registry.list()
    assert await registry is registry
    await registry.aclose()


async def test_opening_waits_for_a_server_that_starts_late(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis_server.stop()
    opening = asyncio.ensure_future(opened(own_redis_server.url))
    await wait_until(lambda: "opening the registry: the store failed; retrying" in caplog.text, "it has tried once")
    assert not opening.done()
    own_redis_server.start()
    assert await opening == []
    assert "opening the registry: the store is back after" in caplog.text


async def opened(url: str) -> list[AgentInfo]:
    async with open_registry(url, wait=60) as registry:
        return await registry.list()


async def test_opening_waits_for_a_file_that_is_locked_by_another_program(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        registry = open_registry(path, wait=60, timeout=0.2)
        opening = asyncio.ensure_future(registry.open())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(opening), 1)
        db.execute("ROLLBACK")
    await opening
    await registry.aclose()


async def test_opening_fails_when_the_wait_is_over(own_redis_server: RedisServer) -> None:
    own_redis_server.stop()
    registry = open_registry(own_redis_server.url, wait=1)
    with pytest.raises(BackendUnavailableError, match="is a server running there"):
        await registry.open()
    own_redis_server.start()
    await registry.open()
    await registry.aclose()


async def test_opening_does_not_wait_if_the_store_refuses(tmp_path: Path) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(BackendRejectedError):
            await open_registry(tmp_path / "absent.db", create=False, wait=3600).open()


async def test_opening_that_is_cancelled_while_it_waits_leaves_nothing(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis_server.stop()
    registry = open_registry(own_redis_server.url, wait=3600)
    opening = asyncio.ensure_future(registry.open())
    await wait_until(lambda: "retrying" in caplog.text, "it has tried once")
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    own_redis_server.start()
    await registry.open()
    await registry.aclose()


def test_a_registry_prints_no_logs_unless_logging_is_configured() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("agentic").handlers)


def test_an_unclosed_registry_warns() -> None:
    def open_and_drop() -> None:
        asyncio.run(MemoryRegistry().open())
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed MemoryRegistry"):
        open_and_drop()


def test_a_dropped_registry_is_freed_at_once() -> None:
    registry = MemoryRegistry()
    reference = weakref.ref(registry)
    del registry
    assert reference() is None

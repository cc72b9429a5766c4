"""Log records: a message for people, and fields for programs."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentic import AgentInfo, AgentRegistry, MemoryRegistry, Reaper, SQLiteRegistry, open_registry
from agentic.testing import RedisServer, wait_until
from tests.support.stores import LONG_AGO, RedisStore


def record_with(caplog: pytest.LogCaptureFixture, text: str) -> Any:
    """Return the one record whose message contains a text."""
    (found,) = [record for record in caplog.records if text in record.getMessage()]
    return found


async def test_a_reaper_logs_how_many_agents_of_which_store(
    registry: AgentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await asyncio.gather(*(registry.register(AgentInfo(each, last_heartbeat=LONG_AGO)) for each in "abc"))

    def marked() -> list[Any]:
        return [record for record in caplog.records if "silent agents offline" in record.getMessage()]

    async with Reaper(registry):  # In a cluster, each primary's agents are a page of their own.
        await wait_until(lambda: sum(record.count for record in marked()) == 3, "it has swept")
    assert {record.store for record in marked()} == {registry.store}


async def test_a_session_logs_which_agent_of_which_store(
    registry: AgentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with registry.session(AgentInfo("a"), interval=0.05):
        await registry.deregister("a")
        await wait_until(lambda: "registered again" in caplog.text, "it is registered again")
    record = record_with(caplog, "registered again")
    assert (record.agent_id, record.store) == ("a", registry.store)


async def test_an_outage_is_logged_with_the_number_of_failed_tries(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_registry(own_redis_server.url) as registry:
        async with registry.session(AgentInfo("a"), interval=0.05):
            own_redis_server.stop()
            await wait_until(lambda: "the store failed; retrying" in caplog.text, "the outage is noticed")
            own_redis_server.start()
            await wait_until(lambda: "the store is back" in caplog.text, "the outage is over")
    begun, over = record_with(caplog, "the store failed"), record_with(caplog, "the store is back")
    assert (begun.agent_id, begun.store, begun.failed_tries) == ("a", registry.store, 1)
    assert over.failed_tries >= 1
    assert f"after {over.failed_tries} failed tries" in over.getMessage()


async def test_a_corrupt_record_is_logged_with_its_agent(
    redis_store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_store.make() as registry:
        await registry.register(AgentInfo("a"))
        await redis_store.corrupt("a")
        await registry.list()
    record = record_with(caplog, "skipped: ")
    assert (record.agent_id, record.store) == ("a", registry.store)
    assert record.name == "agentic.redis"


async def test_a_corrupt_row_is_logged_by_the_logger_of_sqlite(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteRegistry(tmp_path / "x.db") as registry:
        await registry.register(AgentInfo("a"))
        with closing(sqlite3.connect(tmp_path / "x.db")) as db:
            db.execute("UPDATE agents SET metadata = '[1]'")
            db.commit()
        assert await registry.list() == []
    assert record_with(caplog, "skipped: ").name == "agentic.sqlite"


async def test_undelivered_ids_are_logged_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    async with MemoryRegistry() as registry:
        await asyncio.gather(*(registry.register(AgentInfo(each, last_heartbeat=LONG_AGO)) for each in "ab"))

        def fail(_: list[str]) -> None:
            raise ZeroDivisionError

        async with Reaper(registry, interval=3600, on_reaped=fail):
            await wait_until(lambda: "on_reaped failed" in caplog.text, "it has failed")
    record = record_with(caplog, "on_reaped failed")
    assert (record.count, record.store) == (2, "memory://")

"""Sweeps of a SQLite file: corrupt rows, foreign time formats, agents past the registry's `ttl`, other writers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentic import AgentInfo, AgentStatus, SQLiteRegistry
from agentic.backends.sqlite.backend import CLEAR_PAGE_SIZE, PAGE_SIZE
from agentic.testing import FakeClock
from tests.support.sqlite_file import TABLE_WITHOUT_CONSTRAINTS
from tests.support.stores import LONG_AGO

NOW = datetime(2026, 2, 20, 11, 41, tzinfo=UTC)


@pytest.fixture
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as db:
        yield db


@pytest.fixture
def clock() -> FakeClock:
    stopped = FakeClock()
    stopped.stop(NOW)
    return stopped


# --- corrupt rows ---

DAMAGE = [
    ("name", b"\xff"), ("name", None), ("capabilities", "{"), ("capabilities", "[1]"), ("capabilities", None), ("status", b"x"),
    ("last_heartbeat", "garbage"), ("last_heartbeat", 7), ("last_heartbeat", b"2020-01-01T00:00:00.000000Z"), ("last_heartbeat", "2020-13-01T00:00:00.000000Z"),
    ("current_load", "many"), ("max_load", 2.5), ("metadata", "[]"), ("metadata", '{"a": 1}'), ("metadata", "[" * 100_000),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value"), DAMAGE, ids=lambda value: str(value)[:30])
async def test_a_sweep_skips_corrupt_rows_counts_them_and_leaves_them(
    path: Path, raw: sqlite3.Connection, clock: FakeClock, column: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    raw.execute(TABLE_WITHOUT_CONSTRAINTS)
    async with SQLiteRegistry(path, clock=clock) as registry:
        for agent_id in ("before", "damaged", "after"):
            await registry.register(AgentInfo(agent_id, last_heartbeat=LONG_AGO))
        raw.execute(f"UPDATE agents SET {column} = ? WHERE id = 'damaged'", (value,))
        row = raw.execute("SELECT * FROM agents WHERE id = 'damaged'").fetchone()
        for sweep in (1, 2):
            assert sorted(await registry.reap(60)) == (["after", "before"] if sweep == 1 else [])
            assert registry.corrupt_records == sweep
        assert raw.execute("SELECT * FROM agents WHERE id = 'damaged'").fetchone() == row
    assert "the row of agent 'damaged' is corrupt" in caplog.text


async def test_a_page_of_corrupt_rows_does_not_end_a_sweep(
    path: Path, raw: sqlite3.Connection, clock: FakeClock
) -> None:
    async with SQLiteRegistry(path, clock=clock) as registry:
        await registry.backend.insert([AgentInfo(f"a{n}", last_heartbeat=LONG_AGO) for n in range(3 * PAGE_SIZE)])
        raw.execute("UPDATE agents SET metadata = 'none' WHERE rowid > 1")
        assert await registry.reap(60) == ["a0"]
        assert registry.corrupt_records == 3 * PAGE_SIZE - 1


async def test_a_corrupt_row_past_the_registrys_ttl_is_counted_and_deleted(
    path: Path, raw: sqlite3.Connection, clock: FakeClock
) -> None:
    async with SQLiteRegistry(path, clock=clock, ttl=100) as registry:
        await registry.register(AgentInfo("damaged"))
        raw.execute("UPDATE agents SET metadata = 'none'")
        clock.stop(NOW + timedelta(seconds=101))
        assert await registry.reap(60) == []
        assert registry.corrupt_records == 1
    assert raw.execute("SELECT count(*) FROM agents").fetchone() == (0,)


# --- times ---


@pytest.mark.parametrize("form", [
    "2026-02-20T11:40:46.5Z", "2026-02-20T11:40:46.500000000Z", "2026-02-20T11:40:46.500000+00:00", "2026-02-20T12:40:46.5+01:00",
    "2026-02-20T01:10:46.5-10:30", "2026-02-21T01:40:46.50+14:00",
])  # fmt: skip
async def test_heartbeats_in_other_forms_are_compared_as_instants(
    path: Path, raw: sqlite3.Connection, clock: FakeClock, form: str
) -> None:
    at = datetime(2026, 2, 20, 11, 40, 46, 500_000, tzinfo=UTC)
    async with SQLiteRegistry(path, clock=clock) as registry:
        await registry.register(AgentInfo("a"))
        raw.execute("UPDATE agents SET last_heartbeat = ?", (form,))
        clock.stop(at + timedelta(seconds=10))
        assert await registry.reap(10) == []
        assert (await registry.get("a")).last_heartbeat == at
        raw.execute("UPDATE agents SET last_heartbeat = ?", (form,))
        clock.stop(at + timedelta(seconds=10, microseconds=1))
        assert await registry.reap(10) == ["a"]
        assert (await registry.get("a")).last_heartbeat == at
    # From now on it sorts as text, so sweeps need not read it.
    assert raw.execute("SELECT last_heartbeat FROM agents").fetchone() == ("2026-02-20T11:40:46.500000Z",)


@pytest.mark.parametrize(("writers_ttl", "reapers_ttl"), [(100.0, 100.0), (None, 100.0), (100.0, None)])
async def test_after_a_step_back_expiries_count_from_the_next_sweep(
    path: Path, raw: sqlite3.Connection, clock: FakeClock, writers_ttl: float | None, reapers_ttl: float | None
) -> None:
    async with SQLiteRegistry(path, clock=clock, ttl=writers_ttl) as registry:
        await registry.register(AgentInfo("a"))
    (before,) = raw.execute("SELECT expires_at FROM agents").fetchone()
    clock.stop(NOW - timedelta(hours=1))
    async with SQLiteRegistry(path, clock=clock, ttl=reapers_ttl) as registry:
        assert await registry.reap(50) == []
    stamp, expires_at = raw.execute("SELECT last_heartbeat, expires_at FROM agents").fetchone()
    assert stamp == "2026-02-20T10:41:00.000000Z"
    # A registry without a `ttl` cannot know when an agent expires, and sets no expiry on an agent without one.
    assert expires_at == ("2026-02-20T10:42:40.000000Z" if writers_ttl and reapers_ttl else before)


# --- agents that outlived the registry's ttl ---


async def test_agents_past_the_ttl_are_reported_once_among_two_sweeps(path: Path, clock: FakeClock) -> None:
    ids = [f"a{n}" for n in range(3 * PAGE_SIZE)]
    async with SQLiteRegistry(path, clock=clock, ttl=100) as one, SQLiteRegistry(path, clock=clock, ttl=100) as other:
        await one.backend.insert([AgentInfo(agent_id) for agent_id in ids])
        await one.update("a0", status=AgentStatus.OFFLINE)
        clock.stop(NOW + timedelta(seconds=101))
        reported = await asyncio.gather(one.reap(60), other.reap(60))
        assert sorted(reported[0] + reported[1]) == sorted(ids[1:])
        assert await other.reap(60) == await one.reap(60) == []
        assert await one.flush() == 0


async def test_an_agent_that_came_back_after_its_ttl_is_not_deleted_by_a_sweep_under_way(
    path: Path, raw: sqlite3.Connection, clock: FakeClock
) -> None:
    async with SQLiteRegistry(path, clock=clock, ttl=100) as registry:
        await registry.backend.insert([AgentInfo(f"a{n}") for n in range(2 * PAGE_SIZE)])
        clock.stop(NOW + timedelta(seconds=101))
        # A sweep goes from the last row to the first: `a0` comes back after the first page and before its own.
        later = "2099-01-01T00:00:00.000000Z"
        change = "UPDATE agents SET last_heartbeat = '2026-02-20T11:42:41.000000Z', expires_at = ? WHERE id = 'a0'"
        reported = await registry.reap(60, on_marked=lambda _: raw.execute(change, (later,)))
        assert len(reported) == 2 * PAGE_SIZE - 1
        assert [agent.id for agent in await registry.list()] == ["a0"]


# --- other writers are not blocked for long ---


async def test_another_process_can_write_between_the_pages_of_a_sweep(
    path: Path, raw: sqlite3.Connection, clock: FakeClock
) -> None:
    pages: list[int] = []

    def write_meanwhile(ids: list[str]) -> None:
        # Its timeout is 0, so it fails if the sweep keeps the lock.
        raw.execute(
            "INSERT INTO agents (id, last_heartbeat) VALUES (?, '2026-02-20T11:41:00.000000Z')", (f"new-{len(pages)}",)
        )
        pages.append(len(ids))

    async with SQLiteRegistry(path, clock=clock) as registry:
        await registry.backend.insert([AgentInfo(f"a{n}", last_heartbeat=LONG_AGO) for n in range(3 * PAGE_SIZE + 1)])
        assert len(await registry.reap(60, on_marked=write_meanwhile)) == 3 * PAGE_SIZE + 1
        assert pages == [PAGE_SIZE] * 3 + [1]
        assert len(await registry.list()) == 3 * PAGE_SIZE + 1 + len(pages)


async def test_a_flush_of_many_rows_is_several_transactions(path: Path, raw: sqlite3.Connection) -> None:
    async with SQLiteRegistry(path) as registry:
        await registry.backend.insert([AgentInfo(f"a{n}") for n in range(2 * CLEAR_PAGE_SIZE + 1)])
        cleared: list[int] = []
        cursor = None
        while cursor is not None or not cleared:
            count, cursor = await registry.backend.clear(cursor)
            cleared.append(count)
            raw.execute("INSERT INTO agents (id) VALUES (?)", (f"new-{len(cleared)}",))
        # Agents registered meanwhile reused free rowids.
        assert cleared == [CLEAR_PAGE_SIZE, CLEAR_PAGE_SIZE, 1 + 2]

"""SQLite only: the file, other processes, rows of other writers, and cancelled transactions."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentStatus,
    BackendError,
    BackendRejectedError,
    ConfigurationError,
    CorruptRecordError,
    SQLiteRegistry,
)
from agentic.backends.sqlite import connection as sqlite_connection
from agentic.backends.sqlite.backend import PAGE_SIZE
from agentic.backends.sqlite.schema import SCHEMA_VERSION
from agentic.clock import NEVER
from agentic.testing import wait_until
from tests.support.sqlite_file import wait_until_unlocked

GO_TABLE = """CREATE TABLE agents (
    id TEXT PRIMARY KEY, name TEXT NOT NULL DEFAULT '', capabilities TEXT NOT NULL DEFAULT '[]',
    status TEXT NOT NULL DEFAULT 'available', last_heartbeat DATETIME NOT NULL DEFAULT '', current_load INTEGER NOT NULL DEFAULT 0,
    max_load INTEGER NOT NULL DEFAULT 0, registered_at DATETIME NOT NULL DEFAULT '')"""


# --- the file ---


async def test_the_file_is_in_wal_mode_and_says_its_version(path: Path, raw: sqlite3.Connection) -> None:
    async with SQLiteRegistry(path):
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


async def test_agents_survive_the_process(path: Path) -> None:
    async with SQLiteRegistry(path) as registry:
        stored = await registry.register(AgentInfo("a", capabilities=("x",), metadata={"k": "v"}))
    async with SQLiteRegistry(str(path)) as registry:
        assert await registry.list() == [stored]


async def test_the_default_file_and_its_folder_are_private() -> None:
    registry = SQLiteRegistry()
    async with registry:
        await registry.register(AgentInfo("a"))
        file = Path("~/.config/agentic/registry.db").expanduser()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.with_name("registry.db-wal").stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert registry.path == "~/.config/agentic/registry.db"


async def test_a_missing_folder_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="'.*missing' does not exist: create it first"):
        await SQLiteRegistry(tmp_path / "missing" / "registry.db").open()
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("wrong", ["", "a\0b", b"bytes.db"])
def test_an_invalid_path_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="^path: "):
        SQLiteRegistry(wrong)


async def test_a_file_that_is_not_a_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("not a database, but long enough to be looked at by SQLite\n" * 50)
    before = path.read_bytes()
    with pytest.raises(BackendError, match="not a database"):
        await SQLiteRegistry(path).open()
    assert path.read_bytes() == before


async def test_a_newer_schema_is_refused(path: Path, raw: sqlite3.Connection) -> None:
    raw.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(BackendError, match="upgrade agentic"):
        await SQLiteRegistry(path).open()


async def test_a_foreign_table_is_refused_and_left_alone(path: Path, raw: sqlite3.Connection) -> None:
    raw.execute("CREATE TABLE agents (id INTEGER PRIMARY KEY, surname TEXT)")
    before = raw.execute("SELECT sql FROM sqlite_master").fetchall()
    with pytest.raises(BackendError, match="not an agent registry's: no column name"):
        await SQLiteRegistry(path).open()
    assert raw.execute("SELECT sql FROM sqlite_master").fetchall() == before
    assert raw.execute("PRAGMA user_version").fetchone() == (0,)


# --- a file of the Go original ---


async def test_a_go_file_is_opened_and_its_times_normalised(path: Path, raw: sqlite3.Connection) -> None:
    raw.execute(GO_TABLE)
    at = datetime(2026, 2, 20, 11, 40, 46, tzinfo=UTC)
    written = {
        "nanoseconds": ("2026-02-20T11:40:46.123456789Z", at.replace(microsecond=123457)),
        "half": ("2026-02-20T11:40:46.5Z", at.replace(microsecond=500000)),
        "later than half": ("2026-02-20T11:40:46.51Z", at.replace(microsecond=510000)),
        "whole": ("2026-02-20T11:40:46Z", at),
        "offset": ("2026-02-20T12:40:46.25+01:00", at.replace(microsecond=250000)),
        "zero": ("0001-01-01T00:00:00Z", NEVER),
        "empty": ("", NEVER),
    }
    for agent_id, (text, _) in written.items():
        raw.execute("INSERT INTO agents (id, last_heartbeat, capabilities) VALUES (?, ?, '[\"go\"]')", (agent_id, text))
    raw.execute("INSERT INTO agents (id, status, capabilities) VALUES ('null', 'draining', 'null')")
    raw.execute("ALTER TABLE agents ADD COLUMN theirs TEXT DEFAULT 'kept'")
    async with SQLiteRegistry(path) as registry:
        found = {agent.id: agent for agent in await registry.list()}
        assert {i: found[i].last_heartbeat for i in written} == {i: instant for i, (_, instant) in written.items()}
        assert found["half"].capabilities == ("go",)
        assert (found["null"].status, found["null"].capabilities) == (AgentStatus.UNKNOWN, ())
        await registry.heartbeat("null")
        await registry.update("half", name="new", status=AgentStatus.BUSY)
        await registry.register(AgentInfo("whole"))
        assert (await registry.get("half")).last_heartbeat == at.replace(microsecond=500000)
    rows = raw.execute("SELECT id, status, theirs FROM agents WHERE id IN ('null', 'half', 'whole')").fetchall()
    assert sorted(rows) == [("half", "busy", "kept"), ("null", "draining", "kept"), ("whole", "available", "kept")]


async def test_the_order_of_times_that_do_not_sort_as_text_is_kept(path: Path, raw: sqlite3.Connection) -> None:
    raw.execute(GO_TABLE)
    for agent_id, text in (("older", "2026-02-20T11:40:46.5Z"), ("younger", "2026-02-20T11:40:46.51Z")):
        raw.execute("INSERT INTO agents (id, last_heartbeat) VALUES (?, ?)", (agent_id, text))
    now = datetime(2026, 2, 20, 11, 40, 56, 505000, tzinfo=UTC)
    async with SQLiteRegistry(path, clock=lambda: now) as registry:
        assert await registry.reap(10) == ["older"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("last_heartbeat", "garbage"), ("last_heartbeat", 7), ("current_load", "many"), ("capabilities", "{"), ("metadata", "[]"), ("name", b"\xff")],
)  # fmt: skip
async def test_a_corrupt_row_is_skipped_by_list_and_an_error_of_get(
    path: Path, raw: sqlite3.Connection, column: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with SQLiteRegistry(path) as registry:
        for agent_id in ("good", "bad"):
            await registry.register(AgentInfo(agent_id))
        raw.execute(f"UPDATE agents SET {column} = ? WHERE id = 'bad'", (value,))
        assert [agent.id for agent in await registry.list()] == ["good"]
        assert "bad" in caplog.text
        with pytest.raises(BackendError, match="'bad' is corrupt"):
            await registry.get("bad")
        await registry.register(AgentInfo("bad"))
        assert len(await registry.list()) == 2
    async with SQLiteRegistry(path) as registry:
        assert len(await registry.list()) == 2


# --- other processes ---


async def test_a_locked_file_is_an_error_within_the_timeout(path: Path, raw: sqlite3.Connection) -> None:
    async with SQLiteRegistry(path, timeout=0.3) as registry:
        await registry.register(AgentInfo("a"))
        raw.execute("BEGIN IMMEDIATE")
        for call in (registry.heartbeat("a"), registry.register(AgentInfo("b")), registry.reap(0), registry.flush()):
            with pytest.raises(BackendError):
                await call
        assert [agent.id for agent in await registry.list()] == ["a"]
        raw.execute("ROLLBACK")
        await registry.heartbeat("a")


OPEN_AT_ONCE = """
import asyncio, sys
from agentic import AgentInfo, SQLiteRegistry
async def main():
    sys.stdin.readline()
    async with SQLiteRegistry(sys.argv[1], timeout=20) as registry:
        for number in range(int(sys.argv[3])):
            await registry.register(AgentInfo(f"{sys.argv[2]}-{number}"))
asyncio.run(main())
"""


def start_writers(path: Path, writers: int, agents: int) -> list[subprocess.Popen[bytes]]:
    """Start processes that wait for a line of input, then open the file and register agents."""
    command = [sys.executable, "-c", OPEN_AT_ONCE, str(path)]
    return [
        subprocess.Popen([*command, f"writer{n}", str(agents)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(writers)
    ]


@pytest.mark.parametrize("round_", range(4))
async def test_processes_may_open_a_new_file_at_once_and_share_it(path: Path, round_: int) -> None:
    processes = start_writers(path, writers=6, agents=25)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate)
        assert process.returncode == 0, errors.decode()
    async with SQLiteRegistry(path) as registry:
        assert sorted(agent.id for agent in await registry.list()) == sorted(
            f"writer{n}-{a}" for n in range(6) for a in range(25)
        )


# --- cancellation ---


async def test_cancelled_calls_leave_no_transaction_open(path: Path, raw: sqlite3.Connection) -> None:
    chance = random.Random(7)
    async with SQLiteRegistry(path) as registry:
        for number in range(400):
            await registry.register(AgentInfo(f"agent-{number % 20}"))
            call = chance.choice([
                lambda: registry.register(AgentInfo("a")), lambda: registry.heartbeat("agent-3"), lambda: registry.reap(0),
                lambda: registry.update("agent-4", name="x"), lambda: registry.deregister("agent-5"), registry.list,
            ])  # fmt: skip
            task = asyncio.ensure_future(call())
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await wait_until_unlocked(registry.path)
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("ROLLBACK")
        assert len(await registry.list()) >= 19


async def test_a_call_cancelled_while_queued_never_happens(path: Path, raw: sqlite3.Connection) -> None:
    async with SQLiteRegistry(path) as registry:
        raw.execute("BEGIN IMMEDIATE")
        first = asyncio.create_task(registry.register(AgentInfo("first")))
        await asyncio.sleep(0)
        second = asyncio.create_task(registry.reap(0))
        await asyncio.sleep(0)
        second.cancel()
        raw.execute("ROLLBACK")
        await first
        assert (await registry.get("first")).status is AgentStatus.AVAILABLE
        with pytest.raises(asyncio.CancelledError):
            await second


async def test_two_registries_in_one_process_share_a_file(path: Path) -> None:
    async with SQLiteRegistry(path) as one, SQLiteRegistry(path) as other:
        await asyncio.gather(
            *(registry.register(AgentInfo(f"{n}-{id(registry)}")) for n in range(50) for registry in (one, other))
        )
        assert len(await one.list()) == len(await other.list()) == 100
        await one.deregister(f"3-{id(other)}")
        with pytest.raises(AgentNotFoundError):
            await other.get(f"3-{id(other)}")


async def test_a_heartbeat_is_stamped_when_it_has_the_write_lock(
    path: Path, raw: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    def clock() -> datetime:
        asked.append(locked)
        return datetime.now(UTC)

    locked = False
    async with SQLiteRegistry(path, clock=clock) as registry:
        await registry.register(AgentInfo("a"))
        raw.execute("BEGIN IMMEDIATE")
        asked.clear()
        locked = True
        monkeypatch.setattr(sqlite_connection, "sleep", sleep)
        beat = asyncio.create_task(registry.heartbeat_many(["a", "b"]))
        await wait_until(waits.is_set, "the heartbeats wait for the lock")
        locked = False
        raw.execute("COMMIT")
        assert await beat == {"b"}
    assert asked == [False]


async def test_an_expired_agent_is_deleted_from_the_file_by_reap(path: Path, raw: sqlite3.Connection) -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    async with SQLiteRegistry(path, ttl=10, clock=lambda: now[0]) as registry:
        await registry.register(AgentInfo("a"))
        now[0] = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)
        assert (await registry.get("a")).id == "a"
        now[0] = datetime(2026, 1, 1, 0, 0, 10, 1, tzinfo=UTC)
        assert await registry.list() == []
        assert raw.execute("SELECT count(*) FROM agents").fetchone() == (1,)
        assert await registry.reap(5) == ["a"]
        assert raw.execute("SELECT count(*) FROM agents").fetchone() == (0,)


@pytest.mark.parametrize(("synchronous", "level"), [("NORMAL", 1), ("FULL", 2)])
async def test_synchronous_is_an_option(tmp_path: Path, synchronous: Literal["NORMAL", "FULL"], level: int) -> None:
    async with SQLiteRegistry(tmp_path / "r.db", synchronous=synchronous) as registry:
        found = await registry.backend.database.write(lambda db: db.execute("PRAGMA synchronous").fetchone())
    assert found == (level,)


async def test_an_unknown_synchronous_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="synchronous: must be 'NORMAL' or 'FULL'"):
        SQLiteRegistry(synchronous="OFF")  # type: ignore[arg-type]


async def test_batches_of_any_size_and_ids_of_any_kind_find_their_rows(tmp_path: Path) -> None:
    ids = [f"a{n}" for n in range(300)] + ["a", "a\0b", "a\0c", "1", "1.0", "null", "é", "e\u0301"]
    async with SQLiteRegistry(tmp_path / "r.db") as registry:
        for size in (1, 2, 3, 5, 64, 65, len(ids)):
            some = ids[-size:]
            await registry.flush()
            beats = [(agent_id, 0) for agent_id in some]
            assert await registry.backend.touch(beats) == [None] * size
            await registry.backend.insert([AgentInfo(agent_id) for agent_id in some[::2]])
            found = [agent_id in some[::2] for agent_id in some]
            assert [beat is not None for beat in await registry.backend.touch(beats)] == found
            assert [agent is not None for agent in await registry.backend.fetch(some)] == found
            assert await registry.backend.delete(beats) == found


async def test_invalid_text_makes_only_its_own_row_corrupt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "r.db"
    async with SQLiteRegistry(path) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ("good", "bad", "late")))
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE agents SET name = CAST(X'ff' AS TEXT) WHERE id = 'bad'")
            db.execute("UPDATE agents SET last_heartbeat = CAST(X'ff' AS TEXT) WHERE id = 'late'")
        assert [agent.id for agent in await registry.list()] == ["good"]
        answers = await asyncio.gather(
            *(registry.get(each) for each in ("good", "bad", "late")), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [AgentInfo, CorruptRecordError, CorruptRecordError]
        with pytest.raises(CorruptRecordError):
            await registry.heartbeat("bad")
    async with SQLiteRegistry(path) as registry:
        assert [agent.id for agent in await registry.list()] == ["good"]
    assert "'bad'" in caplog.text


async def test_a_damaged_id_at_the_end_of_a_page_hides_no_other_agent(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    ids = [f"a{n:04}" for n in range(2 * PAGE_SIZE + 100)]
    async with SQLiteRegistry(path) as registry:
        await registry.backend.insert([AgentInfo(agent_id) for agent_id in ids])
        # The last row of a page, in either direction of the scan.
        damaged = {ids[PAGE_SIZE - 1], ids[-PAGE_SIZE]}
        with closing(sqlite3.connect(path)) as db, db:
            for agent_id in damaged:
                db.execute("UPDATE agents SET id = CAST(CAST(id AS BLOB) || X'ff' AS TEXT) WHERE id = ?", (agent_id,))
        assert {agent.id for agent in await registry.list()} == set(ids) - damaged
        assert registry.corrupt_records == len(damaged)


@pytest.mark.parametrize("meanwhile", ["some registered anew", "all flushed and registered anew", "vacuumed"])
async def test_a_scan_yields_every_agent_that_stays_exactly_once(tmp_path: Path, meanwhile: str) -> None:
    path = tmp_path / "r.db"
    ids = [f"a{n:04}" for n in range(2 * PAGE_SIZE)]
    async with SQLiteRegistry(path) as registry:
        await registry.backend.insert([AgentInfo(agent_id) for agent_id in ids])
        await registry.backend.delete([(agent_id, 0) for agent_id in ids[::7]])
        stay = set(ids) - set(ids[::7])
        found = []
        async for agent in registry.scan():
            found.append(agent.id)
            if len(found) > 1:
                continue
            if meanwhile == "some registered anew":
                some = sorted(stay)[::5]
                await registry.backend.delete([(agent_id, 0) for agent_id in some])
                await registry.backend.insert([AgentInfo(agent_id) for agent_id in some])
                stay -= set(some)
            elif meanwhile == "vacuumed":
                with closing(sqlite3.connect(path, isolation_level=None)) as db:
                    db.execute("VACUUM")
            else:
                await registry.flush()
                await registry.backend.insert([AgentInfo(agent_id) for agent_id in reversed(ids)])
                stay = set()
        assert len(found) == len(set(found))
        assert stay <= set(found) <= set(ids)


# --- opening without creating ---


async def test_without_create_a_missing_file_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(BackendRejectedError, match=r"there is no file '.*db': registering the first agent"):
        await SQLiteRegistry(tmp_path / "missing.db", create=False).open()
    with pytest.raises(BackendRejectedError, match=r"its folder '.*/missing' does not exist: create it first"):
        await SQLiteRegistry(tmp_path / "missing" / "r.db", create=False).open()
    assert list(tmp_path.iterdir()) == []


async def test_without_create_the_default_file_and_its_folder_are_not_made() -> None:
    with pytest.raises(BackendRejectedError, match="there is no file"):
        await SQLiteRegistry(create=False).open()
    assert list(Path.home().iterdir()) == []


@pytest.mark.parametrize("content", [None, "CREATE TABLE theirs (x)"])
async def test_without_create_a_file_that_holds_no_registry_is_left_alone(path: Path, content: str | None) -> None:
    path.touch()
    if content:
        with closing(sqlite3.connect(path)) as db:
            db.execute(content)
    before = path.read_bytes()
    with pytest.raises(BackendRejectedError, match="has no registry"):
        await SQLiteRegistry(path, create=False).open()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


async def test_without_create_a_registry_is_opened_as_always(path: Path) -> None:
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
    async with SQLiteRegistry(path, create=False) as registry:
        assert [agent.id for agent in await registry.list()] == ["a"]
        await registry.register(AgentInfo("b"))
    with pytest.raises(ConfigurationError, match="create: must be True or False, got str"):
        SQLiteRegistry(path, create="no")  # type: ignore[arg-type]


async def test_a_damaged_drain_still_drains(path: Path, raw: sqlite3.Connection) -> None:
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
        await registry.drain("a", reason="r")
        raw.execute("UPDATE agentic_drains SET reason = x'00', drained_at = 'yesterday'")
        for agent in (await registry.get("a"), *await registry.list()):
            assert not agent.ready
        beat = await registry.heartbeat("a")
        assert beat.draining is not None
        assert beat.draining.reason.startswith("the stored order cannot be read")
        assert await registry.resume("a")
        assert (await registry.get("a")).ready

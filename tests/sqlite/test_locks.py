"""SQLite while another process holds its lock, and transactions whose caller stopped waiting."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentStatus,
    BackendError,
    BackendUnavailableError,
    SQLiteRegistry,
)
from agentic.backends.sqlite import connection as sqlite_connection
from agentic.findings import Level
from agentic.testing import wait_until
from tests.support.sqlite_file import locked_by_another_process, wait_until_unlocked

Call = Callable[[SQLiteRegistry], Awaitable[object]]

DOES_NOT_HANG = 20.0
EXCLUSIVE = ("PRAGMA locking_mode = EXCLUSIVE", "BEGIN IMMEDIATE", "CREATE TABLE theirs (x)")
HOLDS = {
    "write lock": ("BEGIN IMMEDIATE",),
    "exclusive": ("BEGIN EXCLUSIVE",),
    "exclusive, rollback journal": ("PRAGMA journal_mode = DELETE", *EXCLUSIVE),
    "exclusive, WAL": EXCLUSIVE,
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that is set once a connection waits for a lock."""
    event = threading.Event()

    def sleep(seconds: float) -> None:
        event.set()
        time.sleep(seconds)

    monkeypatch.setattr(sqlite_connection, "sleep", sleep)
    return event


class Gate:
    """A clock that blocks its caller's thread, so in the middle of a transaction, until released."""

    def __init__(self) -> None:
        self.closed = False
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self) -> datetime:
        if self.closed:
            self.reached.set()
            assert self.released.wait(DOES_NOT_HANG)
        return datetime.now(UTC)


Threads = Callable[[], set[threading.Thread]]


@pytest.fixture
def new_threads() -> Threads:
    """Return a function that returns the threads started in this test, without those of `to_thread`."""
    before = set(threading.enumerate())

    def begun() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if not each.name.startswith("asyncio_")} - before

    return begun


# --- calls end within the timeout while another process holds the lock ---


@pytest.mark.parametrize("hold", [name for name in HOLDS if name.startswith("exclusive, ")])
@pytest.mark.parametrize("new", [True, False])
async def test_opening_a_locked_file_ends_within_the_timeout(
    path: Path, hold: str, new: bool, new_threads: Threads
) -> None:
    if not new:
        async with SQLiteRegistry(path) as registry:
            await registry.register(AgentInfo("a"))
    registry = SQLiteRegistry(path, timeout=0.3)
    async with locked_by_another_process(path, *HOLDS[hold]), asyncio.timeout(DOES_NOT_HANG):
        with pytest.raises(BackendUnavailableError, match="locked by another process"):
            await registry.open()
        assert not new_threads()
    async with SQLiteRegistry(path) as again:
        assert len(await again.list()) == (0 if new else 1)


@pytest.mark.parametrize("hold", ["write lock", "exclusive"])
async def test_a_registry_is_opened_and_closed_while_another_process_writes(path: Path, hold: str) -> None:
    async with SQLiteRegistry(path) as registry:
        await registry.register(AgentInfo("a"))
    async with locked_by_another_process(path, *HOLDS[hold]), asyncio.timeout(DOES_NOT_HANG):
        async with SQLiteRegistry(path, timeout=0.3) as registry:
            assert [agent.id for agent in await registry.list()] == ["a"]


@pytest.mark.parametrize("hold", ["write lock", "exclusive"])
async def test_calls_on_a_locked_file_end_within_the_timeout(path: Path, hold: str) -> None:
    async with SQLiteRegistry(path, timeout=0.3) as registry, asyncio.timeout(DOES_NOT_HANG):
        await registry.register(AgentInfo("a"))
        async with locked_by_another_process(path, *HOLDS[hold]):
            for call in (
                registry.register(AgentInfo("b")),
                registry.heartbeat("a"),
                registry.update("a", name="x"),
                registry.deregister("a"),
                registry.reap(0),
                registry.flush(),
            ):
                with pytest.raises(BackendUnavailableError, match="locked by another process"):
                    await call
        assert (await registry.get("a")).name == ""
        await registry.heartbeat("a")


async def test_closing_ends_within_the_timeout_while_a_write_waits_for_a_lock(
    path: Path, waits: threading.Event, new_threads: Threads
) -> None:
    registry = SQLiteRegistry(path, timeout=0.5)
    async with registry:
        await registry.register(AgentInfo("a"))
        async with locked_by_another_process(path, *HOLDS["write lock"]), asyncio.timeout(DOES_NOT_HANG):
            beat = asyncio.create_task(registry.heartbeat("a"))
            await wait_until(waits.is_set, "the heartbeat waits for the lock")
            await registry.aclose()
            with pytest.raises(BackendError):
                await beat
            await wait_until(lambda: not new_threads(), "the registry's threads end")


async def test_the_integrity_check_ends_within_the_timeout(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        # The check evaluates this for every row, which takes minutes in total.
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("CREATE TABLE theirs (x INTEGER, CHECK (length(hex(zeroblob(1000000 + x))) > 0))")
        db.executemany("INSERT INTO theirs VALUES (?)", [(number,) for number in range(100_000)])
    async with SQLiteRegistry(path, timeout=1) as registry, asyncio.timeout(DOES_NOT_HANG):
        found = {finding.subject: finding async for finding in registry.diagnose()}
        assert found["integrity"].level is Level.NOTE
        assert found["integrity"].found == "not finished within 0.9 s"
        assert found["names"].level is Level.OK
        await registry.register(AgentInfo("a"))
        assert len(await registry.list()) == 1


# --- reads during a blocked write of the same registry ---


READS: dict[str, Call] = {
    "get": lambda registry: registry.get("a"),
    "list": lambda registry: registry.list(),
    "reap that finds nobody": lambda registry: registry.reap(60),
    "store_time": lambda registry: registry.store_time(),
}


@pytest.mark.parametrize("call", READS.values(), ids=READS)
async def test_reads_go_on_while_a_write_of_the_registry_waits(path: Path, waits: threading.Event, call: Call) -> None:
    async with SQLiteRegistry(path, timeout=60) as registry:
        await registry.register(AgentInfo("a"))
        await registry.register(AgentInfo("b"))
        async with locked_by_another_process(path, *HOLDS["write lock"]):
            beat = asyncio.create_task(
                registry.heartbeat("b")
            )  # Another agent, because calls on one agent keep their order.
            await wait_until(waits.is_set, "the heartbeat waits for the lock")
            async with asyncio.timeout(DOES_NOT_HANG):
                await call(registry)
            assert not beat.done()
        await beat


# --- transactions whose caller stopped waiting ---

CHANGES: dict[str, Call] = {
    "update": lambda registry: registry.update("a", name="late"),
    "deregister": lambda registry: registry.deregister("a"),
    "register": lambda registry: registry.register(AgentInfo("new")),
    "reap": lambda registry: registry.reap(0),
    "flush": lambda registry: registry.flush(),
}


async def assert_nothing_changed(registry: SQLiteRegistry) -> None:
    # These calls run later in the same thread, so a pending change would have happened by then.
    await registry.register(AgentInfo("b"))
    found = await registry.get("a")
    assert (found.name, found.status) == ("", AgentStatus.AVAILABLE)
    with pytest.raises(AgentNotFoundError):
        await registry.get("new")
    await wait_until_unlocked(registry.path)


@pytest.mark.parametrize("call", CHANGES.values(), ids=CHANGES)
async def test_a_change_that_timed_out_waiting_for_a_lock_never_happens(
    path: Path, raw: sqlite3.Connection, call: Call
) -> None:
    async with SQLiteRegistry(path, timeout=0.3) as registry:
        await registry.register(AgentInfo("a"))
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendUnavailableError):
            await call(registry)
        raw.execute("ROLLBACK")
        await assert_nothing_changed(registry)


@pytest.mark.parametrize("call", CHANGES.values(), ids=CHANGES)
async def test_a_running_change_whose_call_times_out_never_happens(path: Path, call: Call) -> None:
    gate = Gate()
    async with SQLiteRegistry(path, clock=gate, timeout=0.3) as registry:
        await registry.register(AgentInfo("a"))
        gate.closed = True
        try:
            with pytest.raises(BackendUnavailableError):
                await call(registry)
        finally:
            gate.closed = False
            gate.released.set()
        await assert_nothing_changed(registry)


@pytest.mark.parametrize("waits_for", ["the lock", "its own statements"])
async def test_a_transaction_whose_caller_is_cancelled_is_rolled_back(
    path: Path, raw: sqlite3.Connection, waits: threading.Event, waits_for: str
) -> None:
    gate = Gate()
    gate.closed = waits_for == "its own statements"

    def work(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO agents (id) VALUES ('new')")
        gate()

    async with SQLiteRegistry(path, timeout=60) as registry:
        await registry.register(AgentInfo("a"))
        if not gate.closed:
            raw.execute("BEGIN IMMEDIATE")
        call = asyncio.ensure_future(registry.backend.database.write(work))
        await wait_until((gate.reached if gate.closed else waits).is_set, f"the transaction waits for {waits_for}")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gate.released.set()
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        await assert_nothing_changed(registry)


async def test_a_cancelled_update_does_not_overtake_a_later_one(
    path: Path, raw: sqlite3.Connection, waits: threading.Event
) -> None:
    async with SQLiteRegistry(path, timeout=60) as registry:
        await registry.register(AgentInfo("a"))
        raw.execute("BEGIN IMMEDIATE")
        early = asyncio.ensure_future(registry.update("a", name="early"))
        await wait_until(waits.is_set, "the update waits for the lock")
        early.cancel()
        later = asyncio.ensure_future(registry.update("a", name="later"))
        await asyncio.sleep(0)
        raw.execute("ROLLBACK")
        assert (await later).name == "later"
        await registry.register(AgentInfo("b"))
        assert (await registry.get("a")).name == "later"
        await wait_until_unlocked(registry.path)


@pytest.mark.parametrize("kind", ["write", "read"])
async def test_a_long_statement_whose_caller_is_cancelled_is_interrupted(path: Path, kind: str) -> None:
    begun = threading.Event()

    def endless(db: sqlite3.Connection) -> None:
        if kind == "write":
            db.execute("INSERT INTO agents (id) VALUES ('new')")
        begun.set()
        db.execute("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n")

    async with SQLiteRegistry(path) as registry, asyncio.timeout(DOES_NOT_HANG):
        await registry.register(AgentInfo("a"))
        database = registry.backend.database
        call = asyncio.ensure_future((database.write if kind == "write" else database.read)(endless))
        await wait_until(begun.is_set, "the statement is about to run")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await assert_nothing_changed(registry)


# --- exceptions of the clock, which runs in the connection's thread ---


@pytest.mark.parametrize("error", [
    KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, StopAsyncIteration, asyncio.CancelledError, MemoryError, RuntimeError,
])  # fmt: skip
async def test_an_exception_of_the_clock_leaves_the_thread_and_the_connection_usable(
    path: Path, error: type[BaseException]
) -> None:
    fails = False

    def clock() -> datetime:
        if fails:
            raise error("of the clock")
        return datetime.now(UTC)

    async with SQLiteRegistry(path, clock=clock) as registry, asyncio.timeout(DOES_NOT_HANG):
        await registry.register(AgentInfo("a"))
        for call in (*CHANGES.values(), *READS.values()):
            fails = True
            with pytest.raises(Exception) as raised:  # noqa: PT011  the type is checked below
                await call(registry)
            fails = False
            assert isinstance(raised.value, BackendError | RuntimeError)
            await assert_nothing_changed(registry)

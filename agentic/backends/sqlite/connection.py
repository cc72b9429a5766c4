"""A SQLite connection in a thread of its own: each job runs there in one hop, and its caller may abandon it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from time import monotonic, sleep
from typing import Any, Final, Generic, Self, TypeVar

import aiosqlite

from agentic.backends.sqlite.errors import is_locked
from agentic.concurrency import as_exception, finish, result_within
from agentic.errors import BackendUnavailableError, RegistryClosedError

T = TypeVar("T")
R = TypeVar("R")

GRACE: Final = 1.0
"""Seconds that a cancelled caller waits for what the thread cannot leave half done: a COMMIT, an open, a close."""

_PAUSES: Final = (0.001, 0.002, 0.005, 0.010, 0.015, 0.020, 0.025, 0.025, 0.025, 0.050)
"""Seconds between attempts to get a lock; the last one repeats. SQLite's own, up to there."""


class AbandonedError(Exception):
    """Ends a job that nobody waits for any more; never leaves the thread's queue."""


class Job(Generic[T]):
    """One function run in the connection's thread, as its caller and the thread see it.

    Attributes:
        db: The connection.
    """

    def __init__(self, db: sqlite3.Connection, work: Callable[[Job[T]], T], deadline: float) -> None:
        """Let `work` wait for locks until `deadline`, by the monotonic clock."""
        self.db = db
        self._work = work
        self._deadline = deadline
        self._lock = threading.Lock()
        self._running = self._abandoned = self._committing = False
        self._result: T | None = None
        self._error: Exception | None = None

    # --- called in the thread ---

    def run(self) -> T | None:
        """Run the function, unless the job was abandoned before its turn came."""
        with self._lock:
            if self._abandoned:
                return None
            self._running = True
        try:
            self._result = self._work(self)
        except BaseException as error:  # noqa: BLE001  the caller gets it; it must not end this thread
            self._error = as_exception(error)
        finally:
            with self._lock:
                self._running = False
        return self.outcome()

    def outcome(self) -> T | None:
        """Return or raise what the function did; the thread may be asked for it again after `run`."""
        if self._error is not None:
            raise self._error
        return self._result

    def execute(self, statement: str) -> sqlite3.Cursor:
        """Execute a statement that others' locks may hold up; try again until the deadline, or until abandoned."""
        return self._retry_while_locked(lambda: self.db.execute(statement))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let the body read the database as it is at the first read."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body with the write lock; roll back when it raises, or when the job was abandoned meanwhile."""
        self._committing = False
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._retry_while_locked(self._commit)
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def _commit(self) -> None:
        with self._lock:
            self._check()
            self._committing = True
        try:
            self.db.execute("COMMIT")
        except BaseException:
            self._committing = False
            raise

    def _retry_while_locked(self, attempt: Callable[[], R]) -> R:
        pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
        while True:
            self._check()
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                pause = next(pauses)
                if not is_locked(error) or monotonic() + pause > self._deadline:
                    raise
            sleep(pause)

    def _check(self) -> None:
        if self._abandoned:
            raise AbandonedError

    # --- called in the event loop ---

    def abandon(self) -> bool:
        """Let the job end without effect, as soon as it can; return False when its COMMIT has begun."""
        with self._lock:
            self._abandoned = True
            if self._running and not self._committing:
                self.db.interrupt()  # Never the next job's statement: this job cannot end before the lock is released.
            return not self._committing


class Connection:
    """A connection of `aiosqlite`, whose thread runs whole jobs.

    `aiosqlite` offers one hop for a whole function only as the `_execute` that its own methods are made of. Its thread
    never keeps the process from ending: a process that ends without closing loses nothing that was committed.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        self._connection = aiosqlite.Connection(connector, iter_chunk_size=64)
        # Up to aiosqlite 0.21 a connection is its own thread.
        self._thread: Any = getattr(self._connection, "_thread", self._connection)
        self._thread.daemon = True
        self._closed = False

    @classmethod
    async def opened(cls, connector: Callable[[], sqlite3.Connection]) -> Self:
        """Start a thread and open a connection in it; a cancelled call leaves neither behind."""
        connection = cls(connector)
        try:
            await finish(connection._open(), GRACE)
        except BaseException:
            with suppress(BackendUnavailableError):
                await result_within(asyncio.ensure_future(connection.close()), GRACE, finish=True)
            raise
        return connection

    async def run(self, work: Callable[[Job[T]], T], patience: float, *, finish: bool = False) -> T:
        """Run a function in the thread, all of it in one hop.

        A cancelled call abandons it: it does not begin, or ends without waiting any longer for a lock, or is
        interrupted, and its transaction is rolled back. Only a COMMIT under way goes on.

        Args:
            work: The function.
            patience: Seconds that it may wait for locks, its wait for the thread included.
            finish: When cancelled during the COMMIT, return the outcome in place of the cancellation, if it comes
                within `GRACE` seconds.
        """
        if self._closed:
            raise RegistryClosedError
        # One hop for a whole transaction: the library itself makes one for each statement.
        job = Job(self._connection._conn, work, monotonic() + patience)  # noqa: SLF001
        try:
            return await self._in_thread(job.run)
        except asyncio.CancelledError:
            if job.abandon() or not finish:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    return await self._in_thread(job.outcome)  # Runs behind the job.
            raise

    async def close(self) -> None:
        """Close the connection and end the thread, behind the job under way."""
        self._closed = True
        await self._connection.close()
        # A thread that outlives the event loop fails to tell it of its end. It has nothing left to do.
        while self._thread.is_alive():  # noqa: ASYNC110  a thread's end sets no event
            await asyncio.sleep(0.001)

    async def _open(self) -> None:
        await self._connection

    async def _in_thread(self, function: Callable[[], T | None]) -> T:
        return await self._connection._execute(function)  # type: ignore[no-any-return, no-untyped-call] # noqa: SLF001

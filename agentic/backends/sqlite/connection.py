"""A SQLite connection in its own thread; each job runs there in one hop, and its caller may abandon it."""

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

CANCEL_WAIT: Final = 1.0
"""Seconds that a cancelled caller waits for an uninterruptible step in the thread: a COMMIT, an open, a close."""

_PAUSES: Final = (0.001, 0.002, 0.005, 0.010, 0.015, 0.020, 0.025, 0.025, 0.025, 0.050)
"""Seconds between attempts to get a lock, then the last value again and again. Taken from SQLite's busy handler."""


class AbandonedError(Exception):
    """Ends a job whose caller has stopped waiting; never raised to a caller."""


class Job(Generic[T]):
    """A function to run in the connection's thread, with the state that the thread and its caller share.

    Attributes:
        db: The connection.
    """

    def __init__(self, db: sqlite3.Connection, work: Callable[[Job[T]], T], deadline: float) -> None:
        """Create a job; `work` may wait for locks until `deadline` on the monotonic clock."""
        self.db = db
        self._work = work
        self._deadline = deadline
        self._lock = threading.Lock()
        self._running = self._abandoned = self._committing = False
        self._result: T | None = None
        self._error: Exception | None = None

    # --- called in the thread ---

    def run(self) -> T | None:
        """Run the function, unless the job was abandoned while queued."""
        with self._lock:
            if self._abandoned:
                return None
            self._running = True
        try:
            self._result = self._work(self)
        except BaseException as error:  # noqa: BLE001  raised in the caller; it must not end this thread
            self._error = as_exception(error)
        finally:
            with self._lock:
                self._running = False
        return self.outcome()

    def outcome(self) -> T | None:
        """Return the function's result or raise its error; may be called again after `run`."""
        if self._error is not None:
            raise self._error
        return self._result

    def execute(self, statement: str) -> sqlite3.Cursor:
        """Execute a statement; while another connection's lock blocks it, retry until the deadline or abandoned."""
        return self._retry_while_locked(lambda: self.db.execute(statement))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Run the body in a read transaction: it sees one snapshot, taken at its first read."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body with the write lock; roll back if it raises or the job is abandoned."""
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
            self._raise_if_abandoned()
            self._committing = True
        try:
            self.db.execute("COMMIT")
        except BaseException:
            self._committing = False
            raise

    def _retry_while_locked(self, attempt: Callable[[], R]) -> R:
        pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
        while True:
            self._raise_if_abandoned()
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                pause = next(pauses)
                if not is_locked(error) or monotonic() + pause > self._deadline:
                    raise
            sleep(pause)

    def _raise_if_abandoned(self) -> None:
        if self._abandoned:
            raise AbandonedError

    # --- called in the event loop ---

    def abandon(self) -> bool:
        """End the job without effect as soon as possible; return False if its COMMIT has begun."""
        with self._lock:
            self._abandoned = True
            if self._running and not self._committing:
                self.db.interrupt()  # Cannot hit the next job: this one cannot end while the lock is taken.
            return not self._committing


class Connection:
    """An `aiosqlite` connection whose thread runs whole jobs.

    `aiosqlite` can run a whole function in one hop only by its private `_execute`. The thread is a daemon, so it never
    delays the exit of the process: without a close, nothing committed is lost.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        self._connection = aiosqlite.Connection(connector, iter_chunk_size=64)
        # Up to aiosqlite 0.21, the connection itself is the thread.
        self._thread: Any = getattr(self._connection, "_thread", self._connection)
        self._thread.daemon = True
        self._closed = False

    @classmethod
    async def opened(cls, connector: Callable[[], sqlite3.Connection]) -> Self:
        """Start a thread and open a connection in it; if cancelled, close both."""
        connection = cls(connector)
        try:
            await finish(connection._open(), CANCEL_WAIT)
        except BaseException:
            with suppress(BackendUnavailableError):
                await result_within(asyncio.ensure_future(connection.close()), CANCEL_WAIT, finish=True)
            raise
        return connection

    async def run(self, work: Callable[[Job[T]], T], patience: float, *, finish: bool = False) -> T:
        """Run a function in the thread in one hop.

        Cancelling the call abandons the job: it does not start, stops waiting for a lock, or is interrupted, and its
        transaction is rolled back. Only a COMMIT in progress is completed.

        Args:
            work: The function.
            patience: Seconds that it may wait for locks, including the time in the thread's queue.
            finish: If cancelled during the COMMIT, return its outcome instead of raising the cancellation, provided it
                ends within `CANCEL_WAIT` seconds.
        """
        if self._closed:
            raise RegistryClosedError
        # One hop for the whole transaction: aiosqlite's public methods make one hop per statement.
        job = Job(self._connection._conn, work, monotonic() + patience)  # noqa: SLF001
        try:
            return await self._in_thread(job.run)
        except asyncio.CancelledError:
            if job.abandon() or not finish:
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_WAIT):
                    return await self._in_thread(job.outcome)  # Queued after the job.
            raise

    async def close(self) -> None:
        """Close the connection and end the thread, after the current job."""
        self._closed = True
        await self._connection.close()
        # If the event loop closed first, the thread would fail to notify it. The thread ends soon.
        while self._thread.is_alive():  # noqa: ASYNC110  a thread's end sets no event
            await asyncio.sleep(0.001)

    async def _open(self) -> None:
        await self._connection

    async def _in_thread(self, function: Callable[[], T | None]) -> T:
        return await self._connection._execute(function)  # type: ignore[no-any-return, no-untyped-call] # noqa: SLF001

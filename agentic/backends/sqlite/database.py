"""A registry's database: transactions on a connection that writes, and on one that reads while writes wait."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final, TypeVar

from agentic.backends.sqlite.connection import GRACE, Connection, Job
from agentic.backends.sqlite.errors import DriverError, backend_error
from agentic.backends.sqlite.file import DatabaseFile
from agentic.backends.sqlite.schema import check_table, prepare, prepare_reader
from agentic.concurrency import result_within
from agentic.errors import BackendUnavailableError, RegistryClosedError

T = TypeVar("T")

IN_MEMORY: Final = ":memory:"

_PATIENCE: Final = 0.9
"""Part of the timeout that a call waits for others' locks, so that it ends with an error that says so."""


class Database:
    """The file at a path, or a database in memory.

    A file has two connections: with one alone, a read would wait behind a write that waits for another process's lock.
    A database in memory has one, which nobody else can lock.

    Attributes:
        file: The file; None in memory.
        synchronous: As given.
        patience: Seconds that a call waits for others' locks.
        sound_ids: The ids of rows in which `write` has found an agent, for as long as nobody else changes the file.
    """

    def __init__(self, path: str, *, create: bool, timeout: float, synchronous: str) -> None:
        self.file: DatabaseFile | None = None
        self.sound_ids: set[str] = set()
        self._path = path
        self._create = create
        self._timeout = timeout
        self.patience = _PATIENCE * timeout
        self.synchronous = synchronous
        self._connections: list[Connection] = []
        self._reader: _Access | None = None
        self._writer: _Access | None = None
        self._closing: asyncio.Task[None] | None = None

    # --- opening and closing ---

    async def open(self) -> None:
        """Open and prepare the file, all of it within the timeout.

        Raises:
            BackendError: It cannot be opened or used; nothing stays open.
        """
        what = f"failed to open {self._path!r}"
        try:
            async with asyncio.timeout(self._timeout):
                await self._open(monotonic() + self.patience)
        except BaseException as error:
            with suppress(BackendUnavailableError):
                await result_within(asyncio.ensure_future(self.close()), GRACE, finish=True)
            if isinstance(error, TimeoutError):
                raise BackendUnavailableError(f"{what}: it did not answer within {self._timeout:g} s") from error
            if isinstance(error, DriverError):
                raise backend_error(error, what) from error
            raise

    async def _open(self, end: float) -> None:
        if self._path == IN_MEMORY:
            writer = reader = await self._connected(lambda: sqlite3.connect(IN_MEMORY, isolation_level=None))
            await writer.run(self._prepare, end - monotonic())
        else:
            self.file = file = DatabaseFile(self._path)
            writer = await self._connected(lambda: file.connect(create=self._create))
            await writer.run(self._prepare, end - monotonic())
            reader = await self._connected(lambda: file.connect(create=False))
            await reader.run(prepare_reader, end - monotonic())
            await reader.run(lambda job: file.remember(has_log=_journal_mode(job.db) == "wal"), end - monotonic())
        self._writer, self._reader = _Access(writer, writes=True), _Access(reader, writes=False)

    def _prepare(self, job: Job[None]) -> None:
        prepare(job, create=self._create, synchronous=self.synchronous)

    async def _connected(self, connector: Callable[[], sqlite3.Connection]) -> Connection:
        connection = await Connection.opened(connector)
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """Close the file, when what is under way has ended; a cancelled call lets that happen by itself.

        Raises:
            BackendError: SQLite failed to close it.
        """
        self._writer = self._reader = None
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(self._closing)
        except DriverError as error:
            raise backend_error(error, f"failed to close {self._path!r}") from error

    async def _close(self) -> None:
        # The one that writes last: the last connection of all copies the log into the file.
        for connection in reversed(self._connections):
            await connection.close()

    # --- transactions ---

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that reads, in the connection's thread: everything it reads is of one instant.

        Raises:
            BackendError: The database failed, or its file was deleted, replaced or altered.
            RegistryClosedError: It is not open.
        """
        return await self._run(self._reader, work)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that writes, in one transaction: all of it happens, or nothing where this raises.

        Nothing happens either when the call is cancelled before the COMMIT has begun; during it, its outcome is
        returned all the same.

        Raises:
            BackendError: As of `read`. What was written to a file that had been deleted or replaced is lost.
            RegistryClosedError: It is not open.
        """
        return await self._run(self._writer, work)

    async def _run(self, access: _Access | None, work: Callable[[sqlite3.Connection], T]) -> T:
        if access is None:
            raise RegistryClosedError
        try:
            return await access.connection.run(
                lambda job: self._decoding(access, job, work), self.patience, finish=access.writes
            )
        except DriverError as error:
            raise backend_error(error, f"SQLite failed on {self._path!r}") from error

    # --- in the thread ---

    def _decoding(self, access: _Access, job: Job[T], work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._transact(access, job, work)
        except sqlite3.OperationalError as error:
            if "decode to UTF-8" not in str(error):
                raise
        # A row holds invalid UTF-8. Retry with such text as bytes, so that only this row is reported corrupt.
        job.db.text_factory = _text_or_bytes
        try:
            return self._transact(access, job, work)
        finally:
            job.db.text_factory = str

    def _transact(self, access: _Access, job: Job[T], work: Callable[[sqlite3.Connection], T]) -> T:
        # Before, since a write to a log that another process uses by now would ruin both; after, since what was written
        # to a file without a name is lost.
        if self.file is not None:
            self.file.check()
        with job.transaction() if access.writes else job.snapshot():
            if access.sees_changes(job) and access.writes:
                self.sound_ids.clear()
            result = work(job.db)
        if self.file is not None:
            self.file.check()
        return result


class _Access:
    """A connection, what it is for, and what it has seen of others' changes."""

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        self.connection = connection
        self.writes = writes
        self._data_version = self._schema_version = -1

    def sees_changes(self, job: Job[T]) -> bool:
        """Tell, in a transaction, whether another connection has changed the file since the last one.

        Raises:
            BackendRejectedError: The table was altered, and calls on it would not do any more what they say.
        """
        # The first read of a transaction, which waits for others' locks.
        (data_version,) = job.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version:
            return False
        (schema_version,) = job.db.execute("PRAGMA schema_version").fetchone()
        if schema_version != self._schema_version:
            check_table(job.db)
        self._data_version, self._schema_version = data_version, schema_version
        return True


def _journal_mode(db: sqlite3.Connection) -> str:
    return str(db.execute("PRAGMA journal_mode").fetchone()[0])


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data

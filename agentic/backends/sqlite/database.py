"""A registry's database: a connection for writes, and one for reads while a write waits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final, TypeVar

from agentic.backends.sqlite.connection import CANCEL_WAIT, Connection, Job
from agentic.backends.sqlite.errors import DriverError, backend_error
from agentic.backends.sqlite.file import DatabaseFile
from agentic.backends.sqlite.schema import check_table, prepare, prepare_reader
from agentic.concurrency import result_within
from agentic.errors import BackendUnavailableError, RegistryClosedError

T = TypeVar("T")

IN_MEMORY: Final = ":memory:"

_PATIENCE: Final = 0.9
"""Fraction of the timeout to wait for locks; the rest is left to report the error."""


class Database:
    """The file at a path, or a database in memory.

    A file has two connections; with only one, a read would wait behind a write that waits for another process's lock.
    A database in memory has one connection, as no other process can lock it.

    Attributes:
        file: The file; None in memory.
        synchronous: The value of `PRAGMA synchronous`.
        patience: Seconds that a call waits for locks.
        starts: The incarnations of rows in which `write` has found a valid agent, by id; cleared when another
            connection changes the file.
    """

    def __init__(self, path: str, *, create: bool, timeout: float, synchronous: str) -> None:
        self.file: DatabaseFile | None = None
        self.starts: dict[str, int] = {}
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
        """Open and prepare the database within the timeout.

        Raises:
            BackendError: It cannot be opened or used; nothing is left open.
        """
        what = f"failed to open {self._path!r}"
        try:
            async with asyncio.timeout(self._timeout):
                await self._open(monotonic() + self.patience)
        except BaseException as error:
            with suppress(BackendUnavailableError):
                await result_within(asyncio.ensure_future(self.close()), CANCEL_WAIT, finish=True)
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
        """Close the database after the current jobs; if cancelled, closing continues in the background.

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
        # The writer last: the last connection to close checkpoints the log into the file.
        for connection in reversed(self._connections):
            await connection.close()

    # --- transactions ---

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a read transaction: it sees one snapshot.

        Raises:
            BackendError: The database failed, or its file was deleted or replaced, or its table altered.
            RegistryClosedError: It is not open.
        """
        return await self._run(self._reader, work)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a write transaction: if this raises, nothing is written.

        If the call is cancelled before the COMMIT begins, nothing is written; if during the COMMIT, its outcome is
        returned anyway.

        Raises:
            BackendError: As for `read`. Writes to a deleted or replaced file are lost.
            RegistryClosedError: It is not open.
        """
        return await self._run(self._writer, work)

    async def _run(self, access: _Access | None, work: Callable[[sqlite3.Connection], T]) -> T:
        if access is None:
            raise RegistryClosedError
        try:
            return await access.connection.run(
                lambda job: self._transact_decoding(access, job, work), self.patience, finish=access.writes
            )
        except DriverError as error:
            raise backend_error(error, f"SQLite failed on {self._path!r}") from error

    # --- in the thread ---

    def _transact_decoding(self, access: _Access, job: Job[T], work: Callable[[sqlite3.Connection], T]) -> T:
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
        # Before: writing to a log that another process has taken over corrupts both files. After: writes to a deleted
        # file are lost.
        if self.file is not None:
            self.file.check()
        with job.transaction() if access.writes else job.snapshot():
            if access.detects_changes(job) and access.writes:
                self.starts.clear()
            result = work(job.db)
        if self.file is not None:
            self.file.check()
        return result


class _Access:
    """A connection, its purpose, and the last change by other connections that it has seen."""

    def __init__(self, connection: Connection, *, writes: bool) -> None:
        self.connection = connection
        self.writes = writes
        self._data_version = self._schema_version = -1

    def detects_changes(self, job: Job[T]) -> bool:
        """Return, in a transaction, whether another connection changed the file since the previous call.

        Raises:
            BackendRejectedError: The table was altered in a way that breaks calls on it.
        """
        # The first read of the transaction: it waits for locks.
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

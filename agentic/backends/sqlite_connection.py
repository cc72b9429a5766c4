"""One SQLite file's connection in a thread of its own: a function runs there in one hop, and errors say what to do."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar
from urllib.parse import quote

import aiosqlite
import anyio

from agentic.errors import BackendError, BackendRejectedError, BackendUnavailableError

T = TypeVar("T")

IN_MEMORY: Final = ":memory:"

_HINTS: Final = {
    sqlite3.SQLITE_FULL: "free some space on its disk",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: name another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged: close every program that has it open, move it away with its -wal and -shm "
    "files, and put a copy in its place or let the agents register anew",
    sqlite3.SQLITE_READONLY: "it, or its folder, cannot be written: check their permissions",
    sqlite3.SQLITE_CANTOPEN: "check that its folder exists and can be written",
    sqlite3.SQLITE_IOERR: "check its disk, and that no program still has an earlier file of this name open",
}


class Database(aiosqlite.Connection):
    """A connection whose thread ends when it could not be opened, and never keeps the process from ending."""

    def __init__(self, path: str, *, create: bool) -> None:
        super().__init__(lambda: _connect(path, create), iter_chunk_size=64)
        self._path = path
        # The working directory may change; where the file is does not.
        self._absolute_path = str(Path(path).absolute())
        self._identity: tuple[int, int] | None = None
        self._stopped: asyncio.Future[None] | None = None
        # A process that ends without closing ends as if killed: what was committed stays.
        self._thread.daemon = True

    @classmethod
    async def opened(cls, path: str, prepare: Callable[[sqlite3.Connection], None], *, create: bool) -> Self:
        """Open a file and prepare it; with `create=False` only one that exists.

        Raises:
            BackendError: It cannot be opened or used; the thread has ended.
        """
        database = cls(path, create=create)
        try:
            await database
        except (sqlite3.Error, OSError) as error:
            await database._stop_waiting()
            raise backend_error(error, f"failed to open {path!r}", _folder_hint(path)) from error
        except BaseException:
            await database._stop_waiting()
            raise
        try:
            await database.run(prepare)
            if path != IN_MEMORY:
                database._identity = database._identity_now()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await database.close()
            raise
        return database

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in the thread, all of it in one hop; one given up before it began never runs.

        A function that has begun runs to its end although its caller was cancelled. `aiosqlite` offers this hop only as
        the `_execute` that its own methods are made of.

        Raises:
            BackendError: The database failed, or its file was deleted or replaced.
        """
        abandoned = False

        def hop() -> T | None:
            if abandoned:
                return None
            self._check_identity()
            result = _work(self._conn, work)
            self._check_identity()
            return result

        try:
            return await self._execute(hop)  # type: ignore[no-any-return, no-untyped-call]
        except asyncio.CancelledError:
            abandoned = True
            raise
        except (sqlite3.Error, OSError) as error:
            raise backend_error(error, f"SQLite failed on {self._path!r}") from error

    def stop(self) -> asyncio.Future[None] | None:
        """Close the file and end the thread, as `aiosqlite` does, and remember what tells the end of it."""
        self._stopped = super().stop()
        return self._stopped

    async def _stop_waiting(self) -> None:
        with anyio.CancelScope(shield=True):
            if self._stopped is not None:
                await self._stopped

    def _check_identity(self) -> None:
        """Refuse to go on with a file that is gone: its log may be another's by now, and what was written is lost."""
        if self._identity is not None and self._identity_now() != self._identity:
            raise BackendRejectedError(
                f"the file {self._path!r} was deleted or replaced while it was open: open the registry again"
            )

    def _identity_now(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._absolute_path)  # noqa: PTH116  twice as fast as Path.stat, once a flush
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def _connect(path: str, create: bool) -> sqlite3.Connection:
    if path == IN_MEMORY:
        return sqlite3.connect(path, isolation_level=None)
    # As a URI that quotes the path, so that a path which looks like a URI is still a file's name.
    absolute = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118  keeps the path as it is
    mode = "rwc" if create else "rw"
    if not create and not os.path.exists(absolute):  # noqa: PTH110
        raise BackendRejectedError(f"there is no file {path!r}: the first program that registers an agent creates it")
    return sqlite3.connect(f"file://{quote(os.fsencode(absolute))}?mode={mode}", uri=True, isolation_level=None)


def _work(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    try:
        return work(db)
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" not in str(error):
            raise
    # Some row holds text that is none. Once more, with bytes in its place, so that this row alone is found corrupt.
    db.text_factory = _text_or_bytes
    try:
        return work(db)
    finally:
        db.text_factory = str


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def backend_error(error: sqlite3.Error | OSError, what: str, advice: str = "") -> BackendError:
    """Return what a driver's error means to callers."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BackendUnavailableError(f"{what}: {error}: another process keeps it locked")
    advice = advice or hint(code)
    return BackendRejectedError(f"{what}: {error}{advice and '; '}{advice}")


def hint(code: int) -> str:
    """Return what to do about one of SQLite's errors; empty where that is not known."""
    return _HINTS.get(code, "")


def _folder_hint(path: str) -> str:
    folder = Path(path).parent
    missing = path != IN_MEMORY and not folder.is_dir()
    return f"its folder {str(folder)!r} does not exist: create it first" if missing else ""

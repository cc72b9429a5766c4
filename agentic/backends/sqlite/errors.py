"""What a failure of SQLite, or of the file system below it, means to callers."""

from __future__ import annotations

import sqlite3
from typing import Final

from agentic.errors import BackendError, BackendRejectedError, BackendUnavailableError
from agentic.text import printable

_HINTS: Final = {
    sqlite3.SQLITE_FULL: "free some space on its disk",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database: name another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged: close every program that has it open, move it away with its -wal and -shm "
    "files, and put a copy in its place or let the agents register anew",
    sqlite3.SQLITE_READONLY: "it, or its folder, cannot be written: check their permissions",
    sqlite3.SQLITE_CANTOPEN: "check that its folder exists, and that the file and the folder can be read and written",
    sqlite3.SQLITE_IOERR: "check its disk, and that no program still has an earlier file of this name open",
}

DriverError = (sqlite3.Error, OSError, MemoryError)
"""What Python's `sqlite3` and the file system raise."""


def is_locked(error: sqlite3.Error) -> bool:
    """Tell whether another connection's lock was in the way, so that a later attempt may succeed."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def backend_error(error: sqlite3.Error | OSError | MemoryError, what: str) -> BackendError:
    """Return the error to raise for a driver's error; `what` says what failed."""
    if isinstance(error, MemoryError):
        return BackendUnavailableError(f"{what}: out of memory")
    text = printable(str(error), 300)
    if isinstance(error, sqlite3.Error) and is_locked(error):
        return BackendUnavailableError(f"{what}: {text}: another process keeps it locked")
    advice = hint(_code(error))
    return BackendRejectedError(f"{what}: {text}{advice and '; '}{advice}")


def hint(code: int) -> str:
    """Return what to do about one of SQLite's errors; empty where that is not known."""
    return _HINTS.get(code, "")


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

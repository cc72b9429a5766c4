"""Translate errors of SQLite and the file system into this library's."""

from __future__ import annotations

import sqlite3
from typing import Final

from agentic.errors import BackendError, BackendRejectedError, BackendUnavailableError
from agentic.text import printable

_HINTS: Final = {
    sqlite3.SQLITE_FULL: "free some disk space",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite database: name another file",
    sqlite3.SQLITE_CORRUPT: "it is damaged: stop every program that has it open, move it away with its -wal and -shm "
    "files, and restore a backup or let the agents register again",
    sqlite3.SQLITE_READONLY: "the file or its folder is not writable: check their permissions",
    sqlite3.SQLITE_CANTOPEN: "check that its folder exists, and that the file and the folder are readable and writable",
    sqlite3.SQLITE_IOERR: "check its disk, and that no program still has an earlier file with this name open",
}

DriverError = (sqlite3.Error, OSError, MemoryError)
"""Errors raised by `sqlite3` and the file system."""


def is_locked(error: sqlite3.Error) -> bool:
    """Return whether another connection's lock caused the error, so that a retry may succeed."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def backend_error(error: sqlite3.Error | OSError | MemoryError, what: str) -> BackendError:
    """Translate a driver's error; `what` says what failed."""
    if isinstance(error, MemoryError):
        return BackendUnavailableError(f"{what}: out of memory")
    text = printable(str(error), 300)
    if isinstance(error, sqlite3.Error) and is_locked(error):
        return BackendUnavailableError(f"{what}: {text}: locked by another process")
    advice = hint(_code(error))
    return BackendRejectedError(f"{what}: {text}{advice and '; '}{advice}")


def hint(code: int) -> str:
    """Return advice for one of SQLite's error codes; empty if there is none."""
    return _HINTS.get(code, "")


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

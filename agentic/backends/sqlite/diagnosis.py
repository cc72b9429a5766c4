"""What an operator should know of a SQLite file that holds a registry."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Final

from agentic.backends.sqlite.database import Database
from agentic.backends.sqlite.errors import hint
from agentic.findings import Finding, Level


async def _state(database: Database) -> list[Finding]:
    return [*await database.read(_facts), Finding(Level.OK, "synchronous", database.synchronous)]


def _facts(db: sqlite3.Connection) -> list[Finding]:
    (journal,) = db.execute("PRAGMA journal_mode").fetchone()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (page_size,) = db.execute("PRAGMA page_size").fetchone()
    return [
        Finding(Level.OK, "SQLite", sqlite3.sqlite_version),
        Finding(Level.OK, "file", f"{pages * page_size:,} bytes"),
        Finding(Level.OK, "journal", journal)
        if journal in ("wal", "memory")
        else Finding(Level.NOTE, "journal", journal, "without WAL, readers and writers wait for one another"),
    ]


async def _integrity(database: Database) -> list[Finding]:
    """Read all of the database, or as much as fits into a call's time."""
    try:
        async with asyncio.timeout(database.patience):
            problems = await database.read(_problems)
    except TimeoutError:
        found = f"not checked to the end within {database.patience:g} s"
        return [Finding(Level.NOTE, "integrity", found, "give the check more time with `timeout`")]
    if problems:
        return [Finding(Level.BAD, "integrity", "; ".join(problems), hint(sqlite3.SQLITE_CORRUPT))]
    return [Finding(Level.OK, "integrity", "ok")]


def _problems(db: sqlite3.Connection) -> list[str]:
    try:
        return [text for (text,) in db.execute("PRAGMA integrity_check(5)").fetchall() if text != "ok"]
    except sqlite3.DatabaseError as error:
        # A file so damaged that the check itself cannot go on.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return [str(error)]


async def _names(database: Database) -> list[Finding]:
    file = database.file
    if file is None:
        return []
    reason = await database.read(lambda _: file.other_names())
    if reason:
        return [Finding(Level.BAD, "names", reason, "programs that open it by two names lose one another's agents")]
    return [Finding(Level.OK, "names", "one")]


CHECKS: Final = (_state, _integrity, _names)
"""What is looked at, one exchange with the database each."""

"""Findings of `agentic doctor` about a SQLite file."""

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
        else Finding(Level.NOTE, "journal", journal, "without WAL, readers and writers block each other"),
    ]


async def _integrity(database: Database) -> list[Finding]:
    """Check the whole database, or as much as the timeout allows."""
    try:
        async with asyncio.timeout(database.patience):
            problems = await database.read(_problems)
    except TimeoutError:
        found = f"not finished within {database.patience:g} s"
        return [Finding(Level.NOTE, "integrity", found, "give the check more time with `timeout`")]
    if problems:
        return [Finding(Level.BAD, "integrity", "; ".join(problems), hint(sqlite3.SQLITE_CORRUPT))]
    return [Finding(Level.OK, "integrity", "ok")]


def _problems(db: sqlite3.Connection) -> list[str]:
    try:
        return [text for (text,) in db.execute("PRAGMA integrity_check(5)").fetchall() if text != "ok"]
    except sqlite3.DatabaseError as error:
        # The file is too damaged for the check itself.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return [str(error)]


async def _names(database: Database) -> list[Finding]:
    file = database.file
    if file is None:
        return []
    reason = await database.read(lambda _: file.other_names())
    if reason:
        advice = "programs that open it by different names lose each other's agents"
        return [Finding(Level.BAD, "names", reason, advice)]
    return [Finding(Level.OK, "names", "one")]


CHECKS: Final = (_state, _integrity, _names)
"""The checks, each one call to the database."""

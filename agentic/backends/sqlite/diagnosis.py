"""Findings of `agentic doctor` about a SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Sequence

from agentic.backends.sqlite.database import Database
from agentic.backends.sqlite.errors import hint
from agentic.findings import Finding, Level


async def examine(database: Database) -> AsyncGenerator[Sequence[Finding], None]:
    """Yield the findings about the database; reads all of it, or as much as the timeout allows."""
    yield [*await database.read(_facts), Finding(Level.OK, "synchronous", database.synchronous)]
    yield [await _integrity(database)]
    if database.file is not None:
        file = database.file
        reason = await database.read(lambda _: file.other_names())
        yield [_names(reason)]


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


async def _integrity(database: Database) -> Finding:
    try:
        async with asyncio.timeout(database.patience):
            problems = await database.read(_problems)
    except TimeoutError:
        found = f"not finished within {database.patience:g} s"
        return Finding(Level.NOTE, "integrity", found, "give the check more time with `timeout`")
    if problems:
        return Finding(Level.BAD, "integrity", "; ".join(problems), hint(sqlite3.SQLITE_CORRUPT))
    return Finding(Level.OK, "integrity", "ok")


def _problems(db: sqlite3.Connection) -> list[str]:
    try:
        return [text for (text,) in db.execute("PRAGMA integrity_check(5)").fetchall() if text != "ok"]
    except sqlite3.DatabaseError as error:
        # The file is too damaged for the check itself.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return [str(error)]


def _names(reason: str) -> Finding:
    if reason:
        return Finding(Level.BAD, "names", reason, "programs that open it by different names lose each other's agents")
    return Finding(Level.OK, "names", "one")

"""What an operator should know of a SQLite file that holds a registry."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from agentic.backends.sqlite_connection import hint
from agentic.findings import Finding, Level

if TYPE_CHECKING:
    from agentic.backends.sqlite import SQLiteRegistry


async def sqlite_findings(registry: SQLiteRegistry) -> AsyncGenerator[Finding, None]:
    """Yield what is found of the file; reads all of it."""
    for finding in await registry._run(_examined):
        yield finding


def _examined(db: sqlite3.Connection) -> list[Finding]:
    (journal,) = db.execute("PRAGMA journal_mode").fetchone()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (page_size,) = db.execute("PRAGMA page_size").fetchone()
    (synchronous,) = db.execute("PRAGMA synchronous").fetchone()
    problems = _problems(db)
    advice = hint(sqlite3.SQLITE_CORRUPT)
    return [
        Finding(Level.OK, "SQLite", sqlite3.sqlite_version),
        Finding(Level.OK, "file", f"{pages * page_size:,} bytes"),
        Finding(Level.BAD, "integrity", "; ".join(problems), advice)
        if problems
        else Finding(Level.OK, "integrity", "ok"),
        Finding(Level.OK, "journal", journal)
        if journal in ("wal", "memory")
        else Finding(Level.NOTE, "journal", journal, "without WAL, readers and writers wait for one another"),
        Finding(Level.OK, "synchronous", {1: "NORMAL", 2: "FULL"}.get(synchronous, str(synchronous))),
    ]


def _problems(db: sqlite3.Connection) -> list[str]:
    try:
        return [text for (text,) in db.execute("PRAGMA integrity_check(5)").fetchall() if text != "ok"]
    except sqlite3.DatabaseError as error:
        # A file so damaged that the check itself cannot go on.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return [str(error)]

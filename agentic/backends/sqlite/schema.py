"""Create the tables, migrate older files and those of the Go original, and refuse an unsuitable table `agents`."""

from __future__ import annotations

import sqlite3
from collections.abc import Container
from typing import Final

from agentic.agent import FIELDS, Kind
from agentic.backends.sqlite import drains
from agentic.backends.sqlite.connection import Job
from agentic.errors import BackendRejectedError
from agentic.text import printable

# Heartbeats of agents scattered over the file change one page each. With SQLite's defaults of 1,000 pages and 2 MiB,
# a third of their time was spent on checkpoints.
LOG_PAGES: Final = 4_000
"""Length of the log, in pages, at which it is copied back into the file."""
CACHE_KIB: Final = 64 * 1024
"""Page cache of each of the two connections."""

# The table of the Go original; `_OWN_COLUMNS` are added to it. Times are fixed-width texts, see `clock.format_instant`.
_CREATE: Final = """
CREATE TABLE agents (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL DEFAULT '',
    capabilities   TEXT NOT NULL DEFAULT '[]',
    status         TEXT NOT NULL DEFAULT 'available',
    last_heartbeat TEXT NOT NULL DEFAULT '0001-01-01T00:00:00.000000Z',
    current_load   INTEGER NOT NULL DEFAULT 0,
    max_load       INTEGER NOT NULL DEFAULT 0,
    registered_at  TEXT NOT NULL DEFAULT '0001-01-01T00:00:00.000000Z'
)"""
_DECLARED: Final = {
    Kind.TEXT: "TEXT NOT NULL DEFAULT ''",
    Kind.TEXTS: "TEXT NOT NULL DEFAULT '[]'",
    Kind.STATUS: "TEXT NOT NULL DEFAULT 'available'",
    Kind.INSTANT: "TEXT NOT NULL DEFAULT '0001-01-01T00:00:00.000000Z'",
    Kind.NUMBER: "INTEGER NOT NULL DEFAULT 0",
    Kind.ENTRIES: "TEXT NOT NULL DEFAULT '{}'",
    Kind.INCARNATION: "INTEGER NOT NULL DEFAULT 0",
}
_OWN_COLUMNS: Final = {field.name: _DECLARED[field.kind] for field in FIELDS[7:]} | {
    "before_offline": _DECLARED[Kind.TEXT],
    "expires_at": "TEXT",
}

_CREATE_COUNTERS: Final = """
CREATE TABLE IF NOT EXISTS agentic_counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID"""
"""Its row `incarnation` has the highest incarnation given out so far."""

SCHEMA_VERSION: Final = len(_OWN_COLUMNS) - 1
"""Version 1 had two own columns; each added column increments the version."""

_KEEPS_TEXT: Final = ("TEXT", "BLOB")
_KEEPS_INTEGERS: Final = ("INTEGER", "NUMERIC", "BLOB")
_KEEPS_TIMES: Final = ("TEXT", "BLOB", "NUMERIC")  # NUMERIC is safe: no time looks like a number.
_KEEP: Final = {Kind.NUMBER: _KEEPS_INTEGERS, Kind.INSTANT: _KEEPS_TIMES, Kind.INCARNATION: _KEEPS_INTEGERS}
_AFFINITIES: Final = {
    **{field.name: _KEEP.get(field.kind, _KEEPS_TEXT) for field in FIELDS},
    "before_offline": _KEEPS_TEXT,
    "registered_at": _KEEPS_TIMES,
    "expires_at": _KEEPS_TIMES,
}
"""For each column, the affinities that store its values unchanged."""


def prepare(job: Job[None], *, create: bool, synchronous: str) -> None:
    """Prepare a connection for writing: set WAL and durability, and create or migrate the table.

    A refused file is left unchanged.

    Raises:
        BackendRejectedError: The file has a newer schema, its `agents` table is unsuitable, or it has none and `create`
            is False.
        sqlite3.Error: The file cannot be used.
    """
    with job.snapshot():
        job.execute("PRAGMA schema_version")  # The first read waits for the locks of other connections.
        exists = _has_table(job.db)
        if not exists and not create:
            raise BackendRejectedError("the file has no registry: registering the first agent creates it")
        current = exists and _version(job.db) == SCHEMA_VERSION
    job.execute("PRAGMA journal_mode = WAL").fetchall()
    job.db.execute(f"PRAGMA synchronous = {synchronous}")
    job.db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    job.db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    if not current:  # No lock if current, so that a registry opens while another process writes.
        with job.transaction():
            _migrate(job.db)
    check_table(job.db)


def prepare_reader(job: Job[None]) -> None:
    """Prepare a connection that only reads."""
    job.db.execute("PRAGMA query_only = ON")
    job.db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    with job.snapshot():
        job.execute("PRAGMA schema_version")


def check_table(db: sqlite3.Connection) -> None:
    """Check that the table has the columns that this version needs.

    Raises:
        BackendRejectedError: It is missing or unsuitable.
    """
    if not _has_table(db):
        raise _refused("there is no such table")
    _check_columns(db, tuple(_AFFINITIES))


def _migrate(db: sqlite3.Connection) -> None:
    if not _has_table(db):  # Another process may have created it meanwhile.
        db.execute(_CREATE)
    present = {row[1] for row in db.execute("PRAGMA table_info(agents)").fetchall()}
    for column, declaration in _OWN_COLUMNS.items():
        if column not in present:
            db.execute(f"ALTER TABLE agents ADD COLUMN {column} {declaration}")
    db.execute(_CREATE_COUNTERS)
    db.execute(drains.CREATE)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _has_table(db: sqlite3.Connection) -> bool:
    """Return whether the table exists.

    Raises:
        BackendRejectedError: It exists, but is unsuitable; or the file has a newer schema.
    """
    version = _version(db)
    if version > SCHEMA_VERSION:
        raise BackendRejectedError(
            f"the file has schema version {version}, this release knows {SCHEMA_VERSION}: upgrade agentic"
        )
    found = db.execute(
        "SELECT type, rootpage, sql FROM sqlite_master"
        " WHERE type IN ('table', 'view') AND name = 'agents' COLLATE NOCASE"
    ).fetchone()
    if found is None:
        return False
    kind, root_page, sql = found
    if kind != "table" or not root_page:
        raise _refused("it is a view or a virtual table")
    if "collate" in sql.lower():
        raise _refused("it has a collation, by which two ids may be the same")
    if db.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'agents' COLLATE NOCASE"
    ).fetchall():
        raise _refused("it has triggers, which may change what is written")
    _check_columns(db, tuple(column for column in _AFFINITIES if column not in _OWN_COLUMNS))
    return True


def _check_columns(db: sqlite3.Connection, needed: tuple[str, ...]) -> None:
    columns = {row[1].lower(): row[2:] for row in db.execute("PRAGMA table_xinfo(agents)").fetchall()}
    if missing := [column for column in needed if column not in columns]:
        raise _refused(f"no column {', '.join(missing)}")
    if [name for name, (*_, key, _) in columns.items() if key] != ["id"]:
        raise _refused("its primary key is not 'id'")
    for name, (declared, required, default, _, hidden) in columns.items():
        if name in _AFFINITIES:
            if hidden or _affinity(declared) not in _AFFINITIES[name]:
                raise _refused(f"column {name} does not keep what is written to it")
            if required and name == "expires_at":
                raise _refused("column expires_at must allow NULL")
        elif required and default is None and not hidden:
            raise _refused(f"column {printable(name, 60)} needs a value that no agent has")
    for _, index, unique, origin, _ in db.execute("PRAGMA index_list(agents)").fetchall():
        if unique and origin != "pk":
            raise _refused(f"its unique index {printable(index, 60)} keeps agents from being registered")
    _check_rowids(db, columns.keys())


def _check_rowids(db: sqlite3.Connection, columns: Container[str]) -> None:
    try:
        db.execute("SELECT rowid FROM agents LIMIT 0")
    except sqlite3.OperationalError as error:
        if "no such column" not in str(error):
            raise
        raise _refused("it has no rowids") from None
    if "rowid" in columns:
        raise _refused("it has a column named rowid")


def _affinity(declared: str) -> str:
    """Return the affinity that SQLite derives from a column's declared type."""
    declared = declared.upper()
    rules = {"INT": "INTEGER", "CHAR": "TEXT", "CLOB": "TEXT", "TEXT": "TEXT", "BLOB": "BLOB", "REAL": "REAL"}
    for part, affinity in (rules | {"FLOA": "REAL", "DOUB": "REAL"}).items():
        if part in declared:
            return affinity
    return "NUMERIC" if declared else "BLOB"


def _refused(reason: str) -> BackendRejectedError:
    return BackendRejectedError(f"the file's table 'agents' is not an agent registry's: {reason}")

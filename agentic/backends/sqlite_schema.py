"""The SQLite file: its table, how an older or a Go file is brought up to date, and how a row becomes an agent."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from agentic.agent import AgentInfo, status_of
from agentic.clock import NEVER, checked_utc, format_instant, parse_instant
from agentic.errors import BackendRejectedError

SCHEMA_VERSION: Final = 1

# Heartbeats of agents that lie scattered in the file change a page each. With SQLite's own limits, of 1,000 pages and
# 2 MiB, a third of their time went into copying the log back too often.
LOG_PAGES: Final = 4_000
"""How long the log grows before it is copied back into the file."""
CACHE_KIB: Final = 64 * 1024
"""How much of the file is kept in memory at most."""

# The Go original's table, then the columns it does not have. Times are text of fixed width, see `clock.format_instant`.
_CREATE: Final = """
CREATE TABLE IF NOT EXISTS agents (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL DEFAULT '',
    capabilities   TEXT NOT NULL DEFAULT '[]',
    status         TEXT NOT NULL DEFAULT 'available',
    last_heartbeat TEXT NOT NULL DEFAULT '0001-01-01T00:00:00.000000Z',
    current_load   INTEGER NOT NULL DEFAULT 0,
    max_load       INTEGER NOT NULL DEFAULT 0,
    registered_at  TEXT NOT NULL DEFAULT '0001-01-01T00:00:00.000000Z'
)"""
_GO_COLUMNS: Final = (
    "id", "name", "capabilities", "status", "last_heartbeat", "current_load", "max_load", "registered_at"
)  # fmt: skip
_OWN_COLUMNS: Final = {"metadata": "TEXT NOT NULL DEFAULT '{}'", "expires_at": "TEXT"}

_STORED_INSTANT: Final = "0000-00-00T00:00:00.000000Z".replace("0", "[0-9]")

AGENT_COLUMNS: Final = "id, name, capabilities, status, last_heartbeat, current_load, max_load, metadata"


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Hold the file's write lock over the body; commit at its end, or roll back when it raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def prepare(db: sqlite3.Connection, timeout: float, synchronous: str, *, create: bool) -> None:
    """Make a fresh connection ready: patience, WAL, durability, and the table as this version knows it.

    Raises:
        BackendRejectedError: With `create=False`, the file holds no registry; it stays as it was.
        BackendRejectedError: The file is a newer version's, or its `agents` table somebody else's; it stays as it was.
        sqlite3.Error: The file cannot be used.
    """
    db.execute(f"PRAGMA busy_timeout = {min(round(timeout * 1000), 2**31 - 1)}")
    if not create and not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'agents'").fetchall():
        raise BackendRejectedError("the file holds no registry: the first program that registers an agent creates it")
    _enter_wal(db, timeout)
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    with transaction(db):
        _migrate(db)


def _enter_wal(db: sqlite3.Connection, timeout: float) -> None:
    # Of several processes that open a new file at once, some are told "locked" without busy_timeout being waited for.
    end = time.monotonic() + timeout
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if (
                error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                or time.monotonic() > end
            ):
                raise
            time.sleep(0.01)


def _migrate(db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise BackendRejectedError(
            f"the file has schema version {version}, this release knows {SCHEMA_VERSION}: upgrade agentic"
        )
    if version < SCHEMA_VERSION:
        db.execute(_CREATE)
        present = {row[1] for row in db.execute("PRAGMA table_info(agents)").fetchall()}
        missing = [column for column in _GO_COLUMNS if column not in present]
        if missing:
            raise BackendRejectedError(
                f"the file's table 'agents' is not an agent registry's: no column {', '.join(missing)}"
            )
        for column, declaration in _OWN_COLUMNS.items():
            if column not in present:
                db.execute(f"ALTER TABLE agents ADD COLUMN {column} {declaration}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    _normalise_heartbeats(db)


def _normalise_heartbeats(db: sqlite3.Connection) -> None:
    """Rewrite times that do not sort as text, as the Go original writes them; one that is no time is left as it is."""
    rows = db.execute(
        "SELECT rowid, last_heartbeat FROM agents WHERE last_heartbeat NOT GLOB ?", (_STORED_INSTANT,)
    ).fetchall()
    for rowid, text in rows:
        try:
            instant = parse_instant(text) if text else NEVER
        except (ValueError, TypeError):
            continue
        db.execute("UPDATE agents SET last_heartbeat = ? WHERE rowid = ?", (format_instant(instant), rowid))


class _Row(msgspec.Struct, array_like=True):
    """The columns of `AGENT_COLUMNS`, checked: SQLite keeps whatever a writer put into them."""

    id: str
    name: str
    capabilities: str
    status: str
    last_heartbeat: datetime
    current_load: int
    max_load: int
    metadata: str


_NEVER_TEXT: Final = format_instant(NEVER)
_decode_capabilities = msgspec.json.Decoder(tuple[str, ...] | None).decode
_decode_metadata = msgspec.json.Decoder(dict[str, str] | None).decode


def agent_of(row: tuple[object, ...]) -> AgentInfo:
    """Return the agent in a row of `AGENT_COLUMNS`.

    Raises:
        ValueError: A column holds what no registry writes.
    """
    if not row[4]:  # No time at all, which is what the year 1 stands for.
        row = (*row[:4], _NEVER_TEXT, *row[5:])
    found = msgspec.convert(row, _Row)
    instant = found.last_heartbeat
    return AgentInfo(
        id=found.id,
        name=found.name,
        capabilities=(_decode_capabilities(found.capabilities) or ()) if found.capabilities not in ("", "[]") else (),
        status=status_of(found.status),
        last_heartbeat=instant if instant.tzinfo is UTC else checked_utc(instant),
        current_load=found.current_load,
        max_load=found.max_load,
        metadata=(_decode_metadata(found.metadata) or {}) if found.metadata not in ("", "{}") else {},
    )


def row_of(agent: AgentInfo, last_heartbeat: str) -> tuple[object, ...]:
    """Return the values of `AGENT_COLUMNS` for an agent with the given heartbeat."""
    return (
        agent.id,
        agent.name,
        json_text(agent.capabilities),
        agent.status.value,
        last_heartbeat,
        agent.current_load,
        agent.max_load,
        json_text(agent.metadata),
    )


def json_text(value: object) -> str:
    """Return a value's JSON as the text that a column holds."""
    return msgspec.json.encode(value).decode()


def later(now: datetime, seconds: float | None) -> str | None:
    """Return the stored form of the instant that many seconds after `now`; None where there is none."""
    if seconds is None:
        return None
    try:
        return format_instant(now + timedelta(seconds=seconds))
    except OverflowError:
        return None

"""Every change of the table `agents`: what is derived from its rows is changed here too, or by triggers in `schema`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from agentic.backends.sqlite.rows import AGENT_COLUMNS, for_all

_INSERT: Final = f"""
INSERT INTO agents ({AGENT_COLUMNS}, expires_at, registered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, capabilities = excluded.capabilities, status = excluded.status,
    last_heartbeat = excluded.last_heartbeat, current_load = excluded.current_load, max_load = excluded.max_load,
    metadata = excluded.metadata, expires_at = excluded.expires_at"""

Keys = Sequence[str] | Sequence[int]


def insert_rows(db: sqlite3.Connection, rows: Iterable[tuple[object, ...]]) -> None:
    """Insert rows; of a row with the same id, replace everything but `registered_at`.

    Args:
        db: The connection.
        rows: The values of `AGENT_COLUMNS`, of `expires_at` and of `registered_at`.
    """
    db.executemany(_INSERT, rows)


def update_rows(
    db: sqlite3.Connection, assignments: str, condition: str, parameters: tuple[object, ...], keys: Keys
) -> int:
    """Update the rows that meet a condition, in one statement; return their number.

    Args:
        db: The connection.
        assignments: What stands after `SET`.
        condition: What stands after `WHERE`. Its last placeholder is in `IN (?)`.
        parameters: The values of the placeholders before that one.
        keys: The values of that one; at least one.
    """
    return for_all(db, f"UPDATE agents SET {assignments} WHERE {condition}", parameters, keys).rowcount


def update_each_row(db: sqlite3.Connection, assignments: str, rows: Iterable[tuple[object, ...]]) -> None:
    """Update rows to values of their own.

    Args:
        db: The connection.
        assignments: What stands after `SET`.
        rows: The values of its placeholders, and the rowid, for each row.
    """
    db.executemany(f"UPDATE agents SET {assignments} WHERE rowid = ?", rows)


def delete_rows(
    db: sqlite3.Connection, condition: str, returning: str, parameters: tuple[object, ...], keys: Keys = ()
) -> list[Any]:
    """Delete the rows that meet a condition, in one statement; return the value of an expression for each.

    Args:
        db: The connection.
        condition: As for `update_rows`, or without `IN (?)`.
        returning: The expression.
        parameters: The values of the other placeholders.
        keys: The values of the one in `IN (?)`.
    """
    deleted = for_all(db, f"DELETE FROM agents WHERE {condition} RETURNING {returning}", parameters, keys)
    return [value for (value,) in deleted.fetchall()]

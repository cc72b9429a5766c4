"""Every write to the tables. Update derived data here too, or by triggers in `schema`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from agentic.agent import FIELDS
from agentic.backends.sqlite.rows import execute_for_keys

_REPLACED: Final = [*(field.name for field in FIELDS if field.name != "id"), "expires_at"]
_INSERT: Final = f"""
INSERT INTO agents (id, {", ".join(_REPLACED)}, registered_at) VALUES (?, {"?, " * len(_REPLACED)} ?)
ON CONFLICT (id) DO UPDATE SET
    before_offline = '', {", ".join(f"{name} = excluded.{name}" for name in _REPLACED)}"""

_RAISE_COUNTER: Final = """
INSERT INTO agentic_counters (name, value) VALUES ('incarnation', ?)
ON CONFLICT (name) DO UPDATE SET value = excluded.value"""

Keys = Sequence[str] | Sequence[int]


def insert_rows(db: sqlite3.Connection, rows: Iterable[Sequence[object]]) -> None:
    """Insert rows; if a row with the same id exists, replace all of it except `registered_at`.

    Args:
        db: The connection.
        rows: The values of `AGENT_COLUMNS`, of `expires_at` and of `registered_at`.
    """
    db.executemany(_INSERT, rows)


def raise_counter(db: sqlite3.Connection, incarnation: int) -> None:
    """Store the highest incarnation given out so far."""
    db.execute(_RAISE_COUNTER, (incarnation,))


def update_rows(
    db: sqlite3.Connection, assignments: str, condition: str, parameters: tuple[object, ...], keys: Keys
) -> int:
    """Update the rows that meet a condition, in one statement; return their number.

    Args:
        db: The connection.
        assignments: The expression after `SET`.
        condition: The expression after `WHERE`. Its last placeholder is `IN (?)`.
        parameters: The values of the placeholders before it.
        keys: The values for `IN (?)`; at least one.
    """
    return execute_for_keys(db, f"UPDATE agents SET {assignments} WHERE {condition}", parameters, keys).rowcount


def update_each_row(db: sqlite3.Connection, assignments: str, rows: Iterable[Sequence[object]]) -> None:
    """Update each row with its own values.

    Args:
        db: The connection.
        assignments: The expression after `SET`.
        rows: For each row, the values of its placeholders and the rowid.
    """
    db.executemany(f"UPDATE agents SET {assignments} WHERE rowid = ?", rows)


def delete_rows(
    db: sqlite3.Connection, condition: str, returning: str, parameters: tuple[object, ...], keys: Keys = ()
) -> list[Any]:
    """Delete the rows that meet a condition, in one statement; return the value of an expression for each.

    Args:
        db: The connection.
        condition: The expression after `WHERE`. If there are keys, its last placeholder is `IN (?)`.
        returning: The expression after `RETURNING`.
        parameters: The values of the other placeholders.
        keys: The values for `IN (?)`, if any.
    """
    deleted = execute_for_keys(db, f"DELETE FROM agents WHERE {condition} RETURNING {returning}", parameters, keys)
    return [value for (value,) in deleted.fetchall()]

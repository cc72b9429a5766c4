"""Every change of the table `agents`: what is derived from its rows is changed here too, or by triggers in `schema`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from agentic.agent import FIELDS
from agentic.backends.sqlite.rows import for_all

_REPLACED: Final = [*(field.name for field in FIELDS if field.name != "id"), "expires_at"]
_INSERT: Final = f"""
INSERT INTO agents (id, {", ".join(_REPLACED)}, registered_at) VALUES (?, {"?, " * len(_REPLACED)} ?)
ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _REPLACED)}"""

Keys = Sequence[str] | Sequence[int]


def insert_rows(db: sqlite3.Connection, rows: Iterable[Sequence[object]]) -> None:
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


def update_each_row(db: sqlite3.Connection, assignments: str, rows: Iterable[Sequence[object]]) -> None:
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

"""Convert rows of the table `agents` to agents, and agents to rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from agentic.agent import FIELDS, HEARTBEAT, INCARNATION, STATUSES, AgentInfo, AgentStatus, Kind, stored_values
from agentic.clock import NEVER, after, checked_utc, format_instant
from agentic.errors import CorruptRecordError
from agentic.incarnations import believed
from agentic.text import printable

AGENT_COLUMNS: Final = ", ".join(field.name for field in FIELDS)

_STORED: Final[Mapping[Kind, Any]] = {Kind.NUMBER: int, Kind.INSTANT: datetime, Kind.INCARNATION: Any}
# Checks the values of `AGENT_COLUMNS`, because SQLite does not enforce column types.
_Row: Final = msgspec.defstruct(
    "_Row", [(field.name, _STORED.get(field.kind, str)) for field in FIELDS], array_like=True, gc=False
)

_NEVER_TEXT: Final = format_instant(NEVER)
_READ: Final[Mapping[Kind, Callable[[str], Any]]] = {
    Kind.TEXTS: msgspec.json.Decoder(tuple[str, ...] | None).decode,
    Kind.STATUS: STATUSES.get,
    Kind.ENTRIES: msgspec.json.Decoder(dict[str, str] | None).decode,
}
_READERS: Final = [
    (at, _READ[field.kind], AgentStatus.UNKNOWN if field.kind is Kind.STATUS else field.default)
    for at, field in enumerate(FIELDS)
    if field.kind in _READ
]
"""For columns whose stored form differs: their index, their decoder, and the value for an empty result."""


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


_WRITE: Final[Mapping[Kind, Callable[[Any], object]]] = {
    Kind.TEXTS: _json_text,
    Kind.STATUS: str.__str__,  # SQLite binds a plain str faster.
    Kind.ENTRIES: _json_text,
}
_WRITE_FIELD: Final[Mapping[str, Callable[[Any], object]]] = {
    field.name: _WRITE[field.kind] for field in FIELDS if field.kind in _WRITE
}
_WRITERS: Final[Sequence[tuple[int, Callable[[Any], object]]]] = [
    (at, _WRITE[field.kind]) for at, field in enumerate(FIELDS) if field.kind in _WRITE
]


def agent_of(row: tuple[object, ...], now: datetime) -> AgentInfo | CorruptRecordError:
    """Return the agent in a row of `AGENT_COLUMNS`, or the error of a corrupt row.

    A heartbeat in the future, left by a step back of the clock, is read as `now`. An incarnation is read as 0 unless it
    is believed.
    """
    try:
        return _converted(row, now)
    except (ValueError, RecursionError) as error:
        shown = printable(str(row[0])), printable(str(error))
        return CorruptRecordError("the row of agent {!r} is corrupt: {}".format(*shown), str(row[0]))


def _converted(row: tuple[object, ...], now: datetime) -> AgentInfo:
    if not row[HEARTBEAT]:  # No heartbeat, which is stored as year 1.
        row = (*row[:HEARTBEAT], _NEVER_TEXT, *row[HEARTBEAT + 1 :])
    values: list[Any] = [*astuple(msgspec.convert(row, _Row))]
    instant = values[HEARTBEAT]
    if instant.tzinfo is not UTC:
        instant = checked_utc(instant)
    values[HEARTBEAT] = min(now, instant)
    values[INCARNATION] = believed(values[INCARNATION], now)
    for at, read, empty in _READERS:
        values[at] = read(values[at] or "null") or empty
    return AgentInfo(*values)


def row_of(agent: AgentInfo, last_heartbeat: str) -> list[object]:
    """Return the values of `AGENT_COLUMNS` for an agent with the given heartbeat."""
    values = [*stored_values(agent)]
    values[HEARTBEAT] = last_heartbeat
    for at, written in _WRITERS:
        values[at] = written(values[at])
    return values


def stored(name: str, value: Any) -> object:
    """Return the stored form of a field's value."""
    write = _WRITE_FIELD.get(name)
    return value if write is None else write(value)


def later(now: datetime, seconds: float | None) -> str | None:
    """Return the stored form of the instant `seconds` after `now`; None for no expiry, or beyond the year 9999."""
    instant = after(now, seconds)
    return None if instant is None else format_instant(instant)


def execute_for_keys(
    db: sqlite3.Connection, statement: str, parameters: tuple[object, ...], keys: Sequence[str] | Sequence[int]
) -> sqlite3.Cursor:
    """Execute a statement with its `IN (?)` expanded to all keys; without keys, unchanged."""
    if not keys:
        return db.execute(statement, parameters)
    # Pad to a power of two, so that few distinct statements are prepared.
    size = 1 << (len(keys) - 1).bit_length()
    return db.execute(_for_keys(statement, size), (*parameters, *keys, *[keys[-1]] * (size - len(keys))))


@cache
def _for_keys(statement: str, size: int) -> str:
    return statement.replace("IN (?)", f"IN ({', '.join('?' * size)})")

"""A row of the table `agents`: how it becomes an agent, and an agent becomes a row."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

import msgspec

from agentic.agent import AgentInfo, status_of
from agentic.clock import NEVER, checked_utc, format_instant
from agentic.errors import CorruptRecordError
from agentic.text import printable

AGENT_COLUMNS: Final = "id, name, capabilities, status, last_heartbeat, current_load, max_load, metadata"


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


def agent_of(row: tuple[object, ...], now: datetime) -> AgentInfo | CorruptRecordError:
    """Return the agent in a row of `AGENT_COLUMNS`, or the error that says why there is none in it.

    A heartbeat in the future, which a step back of the clock leaves behind, counts as of `now`.
    """
    try:
        return _converted(row, now)
    except (ValueError, RecursionError) as error:
        shown = printable(str(row[0])), printable(str(error))
        return CorruptRecordError("the row of agent {!r} is corrupt: {}".format(*shown), str(row[0]))


def _converted(row: tuple[object, ...], now: datetime) -> AgentInfo:
    if not row[4]:  # No time at all, which is what the year 1 stands for.
        row = (*row[:4], _NEVER_TEXT, *row[5:])
    found = msgspec.convert(row, _Row)
    instant = found.last_heartbeat
    if instant.tzinfo is not UTC:
        instant = checked_utc(instant)
    if instant > now:
        instant = now
    return AgentInfo(
        id=found.id,
        name=found.name,
        capabilities=(_decode_capabilities(found.capabilities) or ()) if found.capabilities not in ("", "[]") else (),
        status=status_of(found.status),
        last_heartbeat=instant,
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


def for_all(
    db: sqlite3.Connection, statement: str, parameters: tuple[object, ...], keys: Sequence[str] | Sequence[int]
) -> sqlite3.Cursor:
    """Execute a statement whose last `?`, in `IN (?)`, stands for all the keys; without keys, as it is."""
    if not keys:
        return db.execute(statement, parameters)
    # Padded to a power of two, so that few different texts are prepared.
    size = 1 << (len(keys) - 1).bit_length()
    return db.execute(_for_keys(statement, size), (*parameters, *keys, *[keys[-1]] * (size - len(keys))))


@cache
def _for_keys(statement: str, size: int) -> str:
    return statement.replace("IN (?)", f"IN ({', '.join('?' * size)})")

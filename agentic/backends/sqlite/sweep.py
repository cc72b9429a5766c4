"""One page of a sweep: which agents are silent, whose `ttl` is over, whose heartbeat lies in the future."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from agentic.agent import HEARTBEAT, AgentInfo, AgentStatus
from agentic.backends.sqlite.rows import AGENT_COLUMNS, agent_of, for_all, later
from agentic.backends.sqlite.writes import delete_rows, update_each_row, update_rows
from agentic.clock import NEVER, format_instant, is_stale, stale_before
from agentic.errors import CorruptRecordError

# Times are compared as text where they have the form of `format_instant`; any other time is due, so that it is read.
_DUE: Final = """
SELECT rowid FROM agents WHERE rowid <= :upto AND (
    expires_at < :now
    OR last_heartbeat IS NULL OR last_heartbeat NOT GLOB '????-??-??T??:??:??.??????Z' OR last_heartbeat > :now
    OR (last_heartbeat < :stale AND status IS NOT 'offline'))
ORDER BY rowid DESC LIMIT :limit"""
_READ: Final = f"SELECT rowid, expires_at, expires_at < ?, {AGENT_COLUMNS} FROM agents WHERE rowid IN (?)"
_BY_ROWID: Final = "rowid IN (?)"


@dataclass
class Swept:
    """What one page of a sweep did.

    Attributes:
        ids: Who was marked offline, or deleted without ever having been.
        corrupt: Which rows are no agents: left as they are, or deleted where their `ttl` is over.
    """

    ids: list[str] = field(default_factory=list)
    corrupt: list[CorruptRecordError] = field(default_factory=list)


def due_rows(db: sqlite3.Connection, upto: int, now: datetime, ttl: timedelta, limit: int) -> list[int]:
    """Return the rowids, from `upto` downwards, of rows that a sweep may have to change; it reads them before it does.

    Needs no lock. Most sweeps find nobody, and so write nothing.
    """
    values = {"upto": upto, "limit": limit, "now": format_instant(now), "stale": format_instant(stale_before(now, ttl))}
    return [rowid for (rowid,) in db.execute(_DUE, values).fetchall()]


def sweep_rows(
    db: sqlite3.Connection, rowids: Sequence[int], began: datetime, now: datetime, ttl: timedelta, expiry: float | None
) -> Swept:
    """Decide about some rows as they are now, in a transaction that writes.

    Args:
        db: The connection.
        rowids: The rows.
        began: When the sweep began. Silence is measured up to then: a pause between two pages takes nobody offline, nor
            does a step back of the clock meanwhile.
        now: The store's time.
        ttl: Who has been silent for longer is marked offline.
        expiry: Seconds after which an agent that nobody writes is gone; None keeps it.
    """
    swept = Swept()
    as_of = min(began, now)
    latest = later(now, expiry)
    restamped: list[tuple[str, object, int]] = []
    marked: list[int] = []
    deleted: list[int] = []
    for rowid, expires_at, expired, *columns in for_all(db, _READ, (format_instant(as_of),), rowids).fetchall():
        agent = agent_of(tuple(columns), now)
        if expired:
            deleted.append(rowid)
        if not isinstance(agent, AgentInfo):
            swept.corrupt.append(agent)
            continue
        heartbeat = agent.last_heartbeat or NEVER
        silent = agent.status is not AgentStatus.OFFLINE and (expired or is_stale(heartbeat, as_of, ttl))
        if silent:
            swept.ids.append(agent.id)
        if expired:
            continue
        if silent:
            marked.append(rowid)
        if (stamp := format_instant(heartbeat)) != columns[HEARTBEAT]:
            # It was in the future and ages from now on, or was written in another form.
            ahead = heartbeat == now and latest is not None and isinstance(expires_at, str) and expires_at > latest
            restamped.append((stamp, latest if ahead else expires_at, rowid))
    update_each_row(db, "last_heartbeat = ?, expires_at = ?", restamped)
    if marked:
        update_rows(db, "status = 'offline'", _BY_ROWID, (), marked)
    if deleted:
        delete_rows(db, _BY_ROWID, "rowid", (), deleted)
    return swept

"""One page of a sweep: find agents that are silent, expired, or have a heartbeat in the future, and update them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from agentic.agent import HEARTBEAT, AgentInfo, AgentStatus
from agentic.backends.sqlite.rows import AGENT_COLUMNS, agent_of, execute_for_keys, later
from agentic.backends.sqlite.writes import delete_rows, update_each_row, update_rows
from agentic.clock import NEVER, format_instant, is_stale, stale_before
from agentic.errors import CorruptRecordError

# Compare times as texts if they have the form of `format_instant`; otherwise select the row for decoding.
_DUE: Final = """
SELECT rowid FROM agents WHERE rowid <= :upto AND (
    expires_at < :now
    OR last_heartbeat IS NULL OR last_heartbeat NOT GLOB '????-??-??T??:??:??.??????Z' OR last_heartbeat > :now
    OR (last_heartbeat < :stale AND status IS NOT 'offline'))
ORDER BY rowid DESC LIMIT :limit"""
_READ: Final = f"SELECT rowid, expires_at, expires_at < ?, {AGENT_COLUMNS} FROM agents WHERE rowid IN (?)"
_MARK: Final = "before_offline = CASE status WHEN 'available' THEN '' ELSE status END, status = 'offline'"
_BY_ROWID: Final = "rowid IN (?)"


@dataclass
class Swept:
    """What one page of a sweep did.

    Attributes:
        ids: The agents that were marked offline, or deleted before they were ever marked.
        corrupt: The errors of corrupt rows. These are left unchanged, or deleted if their `ttl` is over.
    """

    ids: list[str] = field(default_factory=list)
    corrupt: list[CorruptRecordError] = field(default_factory=list)


def due_rows(db: sqlite3.Connection, upto: int, now: datetime, ttl: timedelta, limit: int) -> list[int]:
    """Return the rowids, from `upto` downwards, of rows that a sweep may have to change.

    Needs no lock. Most sweeps find no rows, and so never write.
    """
    values = {"upto": upto, "limit": limit, "now": format_instant(now), "stale": format_instant(stale_before(now, ttl))}
    return [rowid for (rowid,) in db.execute(_DUE, values).fetchall()]


def sweep_rows(
    db: sqlite3.Connection, rowids: Sequence[int], began: datetime, now: datetime, ttl: timedelta, expiry: float | None
) -> Swept:
    """Read rows again in a write transaction, and mark, restamp or delete them.

    Args:
        db: The connection.
        rowids: The rows.
        began: When the sweep began. Silence is measured up to then, or up to `now` after a step back of the clock, so
            that a pause between two pages marks nobody offline.
        now: The store's time.
        ttl: Agents silent for longer are marked offline.
        expiry: The registry's `ttl` in seconds; None keeps agents.
    """
    swept = Swept()
    as_of = min(began, now)
    latest = later(now, expiry)
    restamped: list[tuple[str, object, int]] = []
    marked: list[int] = []
    deleted: list[int] = []
    for rowid, expires_at, expired, *columns in execute_for_keys(
        db, _READ, (format_instant(as_of),), rowids
    ).fetchall():
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
            # The heartbeat was in the future and ages from now on, or had another text form.
            ahead = heartbeat == now and latest is not None and isinstance(expires_at, str) and expires_at > latest
            restamped.append((stamp, latest if ahead else expires_at, rowid))
    update_each_row(db, "last_heartbeat = ?, expires_at = ?", restamped)
    if marked:
        update_rows(db, _MARK, _BY_ROWID, (), marked)
    if deleted:
        delete_rows(db, _BY_ROWID, "rowid", (), deleted)
    return swept

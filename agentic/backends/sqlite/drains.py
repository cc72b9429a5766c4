"""Operators' orders to drain agents, in a table of their own."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
from msgspec.structs import replace

from agentic.abc import DrainOrder
from agentic.agent import AgentInfo, Drain
from agentic.backends.sqlite.rows import execute_for_keys
from agentic.clock import after, format_instant
from agentic.wire import UNREADABLE

CREATE: Final = """
CREATE TABLE IF NOT EXISTS agentic_drains (
    agent_id   TEXT PRIMARY KEY,
    reason     TEXT NOT NULL,
    ordered_by TEXT NOT NULL,
    drained_at TEXT NOT NULL,
    ends_at    TEXT
) WITHOUT ROWID"""

_ALL: Final = """
SELECT agent_id, reason, ordered_by, drained_at, ends_at FROM agentic_drains WHERE (ends_at IS NULL OR ends_at > ?)"""
_OF_AGENTS: Final = f"{_ALL} AND agent_id IN (?)"
_ANY: Final = "SELECT EXISTS (SELECT 1 FROM agentic_drains)"
_FEW: Final = 256
_IDS: Final = "SELECT agent_id FROM agentic_drains LIMIT ?"
_SET: Final = "INSERT OR REPLACE INTO agentic_drains VALUES (?, ?, ?, ?, ?)"
_REMOVE: Final = "DELETE FROM agentic_drains WHERE agent_id IN (?)"
_REMOVE_ENDED: Final = "DELETE FROM agentic_drains WHERE ends_at <= ?"
_CLEAR: Final = "DELETE FROM agentic_drains"


def drains_in(db: sqlite3.Connection, now: datetime, ids: Sequence[str] | None = None) -> dict[str, Drain]:
    """Return the drains of these agents, or of all, that have not ended."""
    if ids is not None and not db.execute(_ANY).fetchone()[0]:
        return {}  # The common case.
    statement = _ALL if ids is None else _OF_AGENTS
    rows = execute_for_keys(db, statement, (format_instant(now),), ids or ()).fetchall()
    return {agent_id: _drain_of(*columns) for agent_id, *columns in rows}


def may_be_drained(db: sqlite3.Connection, ids: Sequence[str]) -> bool:
    """Return False only if none of these agents is drained. Cheap while few agents are drained."""
    drained = db.execute(_IDS, (_FEW + 1,)).fetchall()
    return len(drained) > _FEW or not {agent_id for (agent_id,) in drained}.isdisjoint(ids)


def _drain_of(reason: object, by: object, drained_at: object, ends_at: object) -> Drain:
    values = {"reason": reason, "by": by, "drained_at": drained_at, "ends_at": ends_at}
    try:
        return msgspec.convert(values, Drain)  # Checks the values, because SQLite does not enforce column types.
    except ValueError:
        return UNREADABLE


def with_drain(agent: AgentInfo, drains: dict[str, Drain]) -> AgentInfo:
    """Return an agent with its drain filled in."""
    return replace(agent, draining=drains[agent.id]) if agent.id in drains else agent


def set_drain(db: sqlite3.Connection, agent_id: str, order: DrainOrder, now: datetime) -> Drain:
    """Store an order, and remove those that have ended."""
    drain = Drain(order.reason, order.by, now, after(now, order.seconds))
    ends_at = None if drain.ends_at is None else format_instant(drain.ends_at)
    db.execute(_REMOVE_ENDED, (format_instant(now),))
    db.execute(_SET, (agent_id, drain.reason, drain.by, format_instant(now), ends_at))
    return drain


def remove_drain(db: sqlite3.Connection, agent_id: str, now: datetime) -> bool:
    """Remove an order; return whether there was one that had not ended."""
    was_there = agent_id in drains_in(db, now, [agent_id])
    execute_for_keys(db, _REMOVE, (), [agent_id])
    return was_there


def clear_drains(db: sqlite3.Connection) -> None:
    """Remove all orders."""
    db.execute(_CLEAR)

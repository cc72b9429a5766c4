"""Implement the primitives of a store with SQLite statements and transactions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, Final, Literal
from urllib.parse import quote

from msgspec.structs import replace

from agentic.abc import Backend, Cursor, Step
from agentic.agent import AgentChanges, AgentInfo
from agentic.backends.seen import Seen
from agentic.backends.sqlite.database import Database
from agentic.backends.sqlite.diagnosis import CHECKS
from agentic.backends.sqlite.file import DEFAULT_PATH
from agentic.backends.sqlite.rows import AGENT_COLUMNS, agent_of, execute_for_keys, later, row_of, stored
from agentic.backends.sqlite.sweep import due_rows, sweep_rows
from agentic.backends.sqlite.writes import delete_rows, insert_rows, update_rows
from agentic.clock import Clock, format_instant, read, system_clock
from agentic.errors import ConfigurationError, InvalidAgentError, RegistryClosedError, RegistryError
from agentic.findings import Finding
from agentic.options import flag, function, text
from agentic.urls import file_path
from agentic.validation import check_size

PAGE_SIZE: Final = 500
_SAFE_IN_PATH: Final = "/:@+,;=!$&'()*[]"
"""Characters that need no percent-encoding in the path of a URL."""

CLEAR_PAGE_SIZE: Final = 5_000

_PRESENT: Final = "(expires_at IS NULL OR expires_at >= ?)"
_BEAT: Final = """
    last_heartbeat = ?, expires_at = ?, status = CASE status WHEN 'offline' THEN 'available' ELSE status END"""
_PRESENT_WITH_ID: Final = f"{_PRESENT} AND id IN (?)"
_PRESENT_IDS: Final = f"SELECT id FROM agents WHERE {_PRESENT_WITH_ID}"
_FETCH: Final = f"SELECT {AGENT_COLUMNS} FROM agents WHERE {_PRESENT_WITH_ID}"
_PAGE: Final = f"""
SELECT {AGENT_COLUMNS}, rowid FROM agents WHERE {_PRESENT} AND rowid <= ? ORDER BY rowid DESC LIMIT {PAGE_SIZE}"""
# Only text ids: SQLite sorts numbers before texts, blobs after. Cast to a blob, because an id may be invalid UTF-8.
_PAGE_BY_ID: Final = f"""
SELECT {AGENT_COLUMNS}, CAST(id AS BLOB) FROM agents WHERE {_PRESENT} AND id > CAST(? AS TEXT) AND id < x''
ORDER BY id LIMIT ?"""
_WITHOUT_TEXT_ID: Final = f"""
SELECT {AGENT_COLUMNS} FROM agents WHERE {_PRESENT} AND (id IS NULL OR id < '' OR id >= x'')"""
_LAST_ROWID: Final = 2**63 - 1
_CLEARED: Final = f"rowid IN (SELECT rowid FROM agents WHERE rowid <= ? ORDER BY rowid DESC LIMIT {CLEAR_PAGE_SIZE})"
_MAX_SOUND_IDS: Final = 100_000


class SQLiteBackend(Backend):
    """Agents in a table of a SQLite file. The options are those of `SQLiteRegistry`."""

    max_batches = 2

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | timedelta = 5.0,
        clock: Clock = system_clock,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        create: bool = True,
    ) -> None:
        """Check the options; no I/O.

        Raises:
            ConfigurationError: An option is wrong.
        """
        super().__init__(ttl=ttl, timeout=timeout)
        self.path = DEFAULT_PATH if path is None else file_path(path, "path")
        self.clock = function(clock, "clock")
        self.synchronous = synchronous
        if text(synchronous, "synchronous") not in ("NORMAL", "FULL"):
            raise ConfigurationError("synchronous: must be 'NORMAL' or 'FULL'")
        self.create = flag(create, "create")
        self._database: Database | None = None

    @property
    def store(self) -> str:
        """The file as `sqlite:///relative.db` or `sqlite:////absolute.db`."""
        path = os.path.expanduser(DEFAULT_PATH) if self.path == DEFAULT_PATH else self.path  # noqa: PTH111  a text stays
        return f"sqlite:///{quote(path, safe=_SAFE_IN_PATH, errors='surrogateescape')}"

    async def open(self) -> None:
        self._database = Database(self.path, create=self.create, timeout=self.timeout, synchronous=self.synchronous)
        await self._database.open()

    async def close(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            await database.close()

    @property
    def database(self) -> Database:
        if self._database is None:
            raise RegistryClosedError
        return self._database

    # --- agents, by id ---

    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[AgentInfo]:
        def work(db: sqlite3.Connection) -> list[AgentInfo]:
            now = self._now()
            inserted = [agent.stamped(now) for agent in agents]
            stamp, expires_at = format_instant(now), later(now, self.ttl)
            rows = [
                (*row_of(agent, format_instant(agent.last_heartbeat or now)), expires_at, stamp) for agent in inserted
            ]
            insert_rows(db, rows)
            return inserted

        return await self.database.write(work)

    async def touch(self, ids: Sequence[str]) -> Sequence[bool | RegistryError]:
        database = self.database

        def work(db: sqlite3.Connection) -> list[bool | RegistryError]:
            now = self._now()
            stamp = format_instant(now)
            corrupt = _corrupt_among(db, ids, now, database.sound_ids)
            sound = [agent_id for agent_id in ids if agent_id not in corrupt] if corrupt else ids
            if not sound:
                return [corrupt[agent_id] for agent_id in ids]
            # One statement per batch: SQLite runs it without the GIL, so that the event loop continues.
            touched = update_rows(db, _BEAT, _PRESENT_WITH_ID, (stamp, later(now, self.ttl), stamp), sound)
            if not corrupt and touched == len(set(ids)):
                return [True] * len(ids)
            # In the same transaction, so agents present now were present for the update.
            present = {agent_id for (agent_id,) in execute_for_keys(db, _PRESENT_IDS, (stamp,), sound).fetchall()}
            return [corrupt.get(agent_id, agent_id in present) for agent_id in ids]

        return await database.write(work)

    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        return await self.database.read(lambda db: _fetch_all(db, ids, self._now()))

    async def patch(self, changes: Sequence[tuple[str, AgentChanges]]) -> Sequence[AgentInfo | RegistryError | None]:
        def work(db: sqlite3.Connection) -> list[AgentInfo | RegistryError | None]:
            now = self._now()
            return [_patch_one(db, agent_id, fields, now) for agent_id, fields in changes]

        return await self.database.write(work)

    async def delete(self, ids: Sequence[str]) -> Sequence[bool]:
        def work(db: sqlite3.Connection) -> list[bool]:
            removed = set(delete_rows(db, _PRESENT_WITH_ID, "id", (format_instant(self._now()),), ids))
            return [agent_id in removed for agent_id in ids]

        return await self.database.write(work)

    # --- the whole fleet ---

    async def times(self) -> Sequence[datetime]:
        return await self.database.read(lambda _: [self._now()])

    async def page(self, after: str, limit: int, walk: str) -> tuple[Sequence[AgentInfo], str | None]:
        limit = min(limit, PAGE_SIZE)

        def work(db: sqlite3.Connection) -> tuple[datetime, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
            now = self._now()
            parameters = (format_instant(now), after.encode(errors="surrogateescape"), limit + 1)
            rows = db.execute(_PAGE_BY_ID, parameters).fetchall()
            without_text_id = [] if len(rows) > limit else db.execute(_WITHOUT_TEXT_ID, parameters[:1]).fetchall()
            return now, rows, without_text_id

        now, rows, without_text_id = await self.database.read(work)
        agents = self._agents(chain((row[:-1] for row in rows[:limit]), without_text_id), now)
        return agents, rows[limit - 1][-1].decode(errors="surrogateescape") if len(rows) > limit else None

    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        # Walk by rowid, because any other column may be corrupt. Walk downwards: new rows get higher rowids, and VACUUM
        # can only lower a rowid. An agent that was registered again or moved may appear twice.
        upto, seen = cursor or (_LAST_ROWID, Seen[str]())

        def work(db: sqlite3.Connection) -> tuple[datetime, list[tuple[Any, ...]]]:
            now = self._now()
            return now, db.execute(_PAGE, (format_instant(now), upto)).fetchall()

        now, rows = await self.database.read(work)
        agents = self._agents((row[:-1] for row in rows), now)
        new = set(seen.only_new([agent.id for agent in agents]))
        page = [agent for agent in agents if agent.id in new]
        if len(rows) == PAGE_SIZE:
            return page, (rows[-1][-1] - 1, seen)
        await seen.forget()
        return page, None

    def _agents(self, rows: Iterable[tuple[Any, ...]], now: datetime) -> list[AgentInfo]:
        """Return the agent of each row; skip corrupt rows and pass them to `on_corrupt`."""
        agents = []
        for row in rows:
            agent = agent_of(row, now)
            if isinstance(agent, AgentInfo):
                agents.append(agent)
            else:
                self.on_corrupt(agent)
        return agents

    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        upto, began = cursor or (_LAST_ROWID, (await self.times())[0])
        rowids = await self.database.read(lambda db: due_rows(db, upto, began, ttl, PAGE_SIZE))
        if not rowids:
            return (), None
        swept = await self.database.write(lambda db: sweep_rows(db, rowids, began, self._now(), ttl, self.ttl))
        for error in swept.corrupt:
            self.on_corrupt(error)
        return swept.ids, (rowids[-1] - 1, began) if len(rowids) == PAGE_SIZE else None

    async def clear(self, cursor: Cursor) -> Step[int]:
        if cursor is None:
            (cursor,) = await self.database.read(lambda db: db.execute("SELECT max(rowid) FROM agents").fetchone())
        if cursor is None:
            return 0, None
        present = await self.database.write(
            lambda db: delete_rows(db, _CLEARED, _PRESENT, (cursor, format_instant(self._now())))
        )
        return sum(present), cursor if len(present) == CLEAR_PAGE_SIZE else None

    async def diagnose(self, cursor: Cursor) -> Step[Sequence[Finding]]:
        check, *following = CHECKS if cursor is None else cursor
        return await check(self.database), following or None

    def _now(self) -> datetime:
        return read(self.clock)


def _fetch_all(db: sqlite3.Connection, ids: Sequence[str], now: datetime) -> list[AgentInfo | RegistryError | None]:
    rows = {row[0]: row for row in execute_for_keys(db, _FETCH, (format_instant(now),), ids).fetchall()}
    return [agent_of(rows[agent_id], now) if agent_id in rows else None for agent_id in ids]


def _corrupt_among(
    db: sqlite3.Connection, ids: Sequence[str], now: datetime, sound_ids: set[str]
) -> dict[str, RegistryError]:
    """Return the errors of corrupt rows by id; check only rows that may have changed since they were last read."""
    if sound_ids.issuperset(ids):
        return {}
    unread = [agent_id for agent_id in ids if agent_id not in sound_ids]
    corrupt: dict[str, RegistryError] = {}
    if len(sound_ids) > _MAX_SOUND_IDS:
        sound_ids.clear()
    for agent_id, found in zip(unread, _fetch_all(db, unread, now), strict=True):
        if isinstance(found, RegistryError):
            corrupt[agent_id] = found
        elif found is not None:
            sound_ids.add(agent_id)
    return corrupt


def _patch_one(
    db: sqlite3.Connection, agent_id: str, fields: AgentChanges, now: datetime
) -> AgentInfo | RegistryError | None:
    (agent,) = _fetch_all(db, [agent_id], now)
    if not isinstance(agent, AgentInfo):
        return agent
    changed = replace(agent, **fields)
    try:
        check_size(changed)
    except InvalidAgentError as error:
        return error
    values = tuple(stored(name, value) for name, value in fields.items())
    update_rows(db, ", ".join(f"{name} = ?" for name in fields), "id IN (?)", values, [agent_id])
    return changed

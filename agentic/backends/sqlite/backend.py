"""Implement the primitives of a store with SQLite statements and transactions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

from msgspec.structs import replace

from agentic.abc import Backend, Cursor, DrainOrder, Registered, Step
from agentic.agent import USUAL_BEAT, AgentChanges, AgentInfo, Beat, Drain
from agentic.backends.seen import Seen
from agentic.backends.sqlite.database import IN_MEMORY, Database
from agentic.backends.sqlite.diagnosis import CHECKS
from agentic.backends.sqlite.drains import clear_drains, drains_in, may_be_drained, remove_drain, set_drain, with_drain
from agentic.backends.sqlite.file import DEFAULT_PATH
from agentic.backends.sqlite.rows import AGENT_COLUMNS, agent_of, execute_for_keys, later, row_of, stored
from agentic.backends.sqlite.sweep import due_rows, sweep_rows
from agentic.backends.sqlite.writes import delete_rows, insert_rows, raise_counter, update_rows
from agentic.clock import Clock, format_instant, parse_instant, read, system_clock
from agentic.errors import ConfigurationError, InvalidAgentError, RegistryClosedError, RegistryError
from agentic.findings import Finding
from agentic.incarnations import admitted, believed, next_incarnation, random_distance
from agentic.options import flag, function, text
from agentic.urls import file_path
from agentic.validation import check_size

PAGE_SIZE: Final = 500
_SAFE_IN_PATH: Final = "/:@+,;=!$&'()*[]"
"""Characters that need no percent-encoding in the path of a URL."""

CLEAR_PAGE_SIZE: Final = 5_000

_PRESENT: Final = "(expires_at IS NULL OR expires_at >= ?)"
_PRESENT_WITH_ID: Final = f"{_PRESENT} AND id IN (?)"
_PRESENT_IDS: Final = f"SELECT id FROM agents WHERE {_PRESENT_WITH_ID}"
_STARTS: Final = f"SELECT id, incarnation, last_heartbeat FROM agents WHERE {_PRESENT_WITH_ID}"
_COUNTER: Final = "SELECT value FROM agentic_counters WHERE name = 'incarnation'"
_BEAT: Final = "last_heartbeat = ?, expires_at = ?"
_ONLINE_WITH_ID: Final = f"status IS NOT 'offline' AND {_PRESENT_WITH_ID}"
_UNDRAINED_WITH_ID: Final = f"id NOT IN (SELECT agent_id FROM agentic_drains) AND {_ONLINE_WITH_ID}"
# Expressions after SET refer to the values before the update.
_RETURN: Final = f"""{_BEAT}, before_offline = '', status = CASE
    WHEN typeof(before_offline) = 'text' AND before_offline NOT IN ('', 'offline') THEN before_offline
    ELSE 'available' END"""
_OFFLINE_WITH_ID: Final = f"status IS 'offline' AND {_PRESENT_WITH_ID}"
_OFFLINE_IDS: Final = f"SELECT id FROM agents WHERE {_OFFLINE_WITH_ID}"
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
_MAX_STARTS: Final = 100_000


class _AsOf(NamedTuple):
    """What agents are read with: the store's time, and all drains then."""

    now: datetime
    drains: dict[str, Drain]


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

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_database": None}

    def second(self) -> SQLiteBackend:
        if self.path == IN_MEMORY:
            raise ConfigurationError(f"thread: must be False for {IN_MEMORY}, which only one connection can see")
        second = copy(self)
        second.create = False
        if self._database is not None and self._database.file is not None:
            second.path = self._database.file.name  # The working directory may have changed.
        return second

    @property
    def database(self) -> Database:
        if self._database is None:
            raise RegistryClosedError
        return self._database

    # --- agents, by id ---

    async def insert(self, agents: Sequence[AgentInfo]) -> Sequence[Registered | RegistryError]:
        database = self.database

        def work(db: sqlite3.Connection) -> list[Registered | RegistryError]:
            now = self._now()
            stamp, expires_at = format_instant(now), later(now, self.ttl)
            ids = [agent.id for agent in agents]
            before, drains = _stored_starts(db, ids, now), drains_in(db, now, ids)
            ((counter,),) = db.execute(_COUNTER).fetchall() or [(0,)]
            counter = highest = believed(counter, now)
            outcomes: list[Registered | RegistryError] = []
            rows = []
            for agent in agents:
                last, heartbeat = before.get(agent.id, (0, None))
                verdict = admitted(agent.id, agent.incarnation, last, now)
                if isinstance(verdict, RegistryError):
                    outcomes.append(verdict)
                    continue
                incarnation = agent.incarnation or next_incarnation(highest, last, now, random_distance())
                highest = max(highest, incarnation)
                stamped = replace(agent.stamped(now), incarnation=incarnation)
                silence = now - heartbeat if heartbeat and not agent.incarnation else None
                outcomes.append(Registered(with_drain(stamped, drains), silence, last))
                rows.append((*row_of(stamped, format_instant(stamped.last_heartbeat or now)), expires_at, stamp))
                database.starts.pop(agent.id, None)
            insert_rows(db, rows)
            if highest > counter:
                raise_counter(db, highest)
            return outcomes

        return await database.write(work)

    async def touch(self, beats: Sequence[tuple[str, int]]) -> Sequence[Beat | RegistryError | None]:
        database = self.database

        def work(db: sqlite3.Connection) -> list[Beat | RegistryError | None]:
            now = self._now()
            ids, expires_at = [agent_id for agent_id, _ in beats], later(now, self.ttl)
            if _are_usual(beats, database.starts):
                found = _beat_all(db, ids, now, expires_at)
                return [USUAL_BEAT] * len(ids) if found is None else [found.get(agent_id) for agent_id in ids]
            corrupt = _read_starts(db, ids, now, database.starts)
            verdicts = [_verdict(beat, corrupt, database.starts, now) for beat in beats]
            admitted_ids = [agent_id for agent_id, verdict in zip(ids, verdicts, strict=True) if verdict is True]
            found = _beat_all(db, admitted_ids, now, expires_at) if admitted_ids else {}
            if found is None:
                found = dict.fromkeys(admitted_ids, USUAL_BEAT)

            def outcome(agent_id: str, incarnation: int, verdict: bool | RegistryError) -> Beat | RegistryError | None:
                if verdict is not True:
                    return verdict or None
                beat = found.get(agent_id)
                is_rewritten = incarnation and not database.starts.get(agent_id)
                return replace(beat, rewritten=True) if beat and is_rewritten else beat

            return [outcome(*beat, verdict) for beat, verdict in zip(beats, verdicts, strict=True)]

        return await database.write(work)

    async def fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        return await self.database.read(lambda db: _fetch_all(db, ids, self._now()))

    async def patch(
        self, changes: Sequence[tuple[str, AgentChanges, int]]
    ) -> Sequence[AgentInfo | RegistryError | None]:
        database = self.database

        def work(db: sqlite3.Connection) -> list[AgentInfo | RegistryError | None]:
            now = self._now()
            for agent_id, _, incarnation in changes:
                if incarnation:
                    database.starts.pop(agent_id, None)
            return [_patch_one(db, agent_id, fields, incarnation, now) for agent_id, fields, incarnation in changes]

        return await database.write(work)

    async def delete(self, starts: Sequence[tuple[str, int]]) -> Sequence[bool | RegistryError]:
        def work(db: sqlite3.Connection) -> list[bool | RegistryError]:
            now = self._now()
            verdicts: list[bool | RegistryError] = [True] * len(starts)
            if any(incarnation for _, incarnation in starts):
                last = _stored_starts(db, [agent_id for agent_id, _ in starts], now)
                verdicts = [
                    admitted(agent_id, incarnation, last.get(agent_id, (0, None))[0], now)
                    for agent_id, incarnation in starts
                ]
            ids = [agent_id for (agent_id, _), verdict in zip(starts, verdicts, strict=True) if verdict is True]
            removed = set(delete_rows(db, _PRESENT_WITH_ID, "id", (format_instant(now),), ids)) if ids else set()
            return [
                agent_id in removed if verdict is True else verdict
                for (agent_id, _), verdict in zip(starts, verdicts, strict=True)
            ]

        return await self.database.write(work)

    async def set_drains(self, orders: Sequence[tuple[str, DrainOrder | None]]) -> Sequence[Drain | bool]:
        def work(db: sqlite3.Connection) -> list[Drain | bool]:
            now = self._now()
            return [
                remove_drain(db, agent_id, now) if order is None else set_drain(db, agent_id, order, now)
                for agent_id, order in orders
            ]

        return await self.database.write(work)

    async def drains(self) -> dict[str, Drain]:
        return await self.database.read(lambda db: drains_in(db, self._now()))

    # --- the whole fleet ---

    async def times(self) -> Sequence[datetime]:
        return await self.database.read(lambda _: [self._now()])

    async def page(self, after: str, limit: int, walk: str) -> tuple[Sequence[AgentInfo], str | None]:
        limit = min(limit, PAGE_SIZE)

        def work(db: sqlite3.Connection) -> tuple[_AsOf, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
            now = self._now()
            parameters = (format_instant(now), after.encode(errors="surrogateescape"), limit + 1)
            rows = db.execute(_PAGE_BY_ID, parameters).fetchall()
            without_text_id = [] if len(rows) > limit else db.execute(_WITHOUT_TEXT_ID, parameters[:1]).fetchall()
            return _AsOf(now, drains_in(db, now)), rows, without_text_id

        as_of, rows, without_text_id = await self.database.read(work)
        agents = self._agents(chain((row[:-1] for row in rows[:limit]), without_text_id), as_of)
        return agents, rows[limit - 1][-1].decode(errors="surrogateescape") if len(rows) > limit else None

    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        # Walk by rowid, because any other column may be corrupt. Walk downwards: new rows get higher rowids, and VACUUM
        # can only lower a rowid. An agent that was registered again or moved may appear twice.
        upto, seen = cursor or (_LAST_ROWID, Seen[str]())

        def work(db: sqlite3.Connection) -> tuple[_AsOf, list[tuple[Any, ...]]]:
            now = self._now()
            return _AsOf(now, drains_in(db, now)), db.execute(_PAGE, (format_instant(now), upto)).fetchall()

        as_of, rows = await self.database.read(work)
        agents = self._agents((row[:-1] for row in rows), as_of)
        new = set(seen.only_new([agent.id for agent in agents]))
        page = [agent for agent in agents if agent.id in new]
        if len(rows) == PAGE_SIZE:
            return page, (rows[-1][-1] - 1, seen)
        await seen.forget()
        return page, None

    def _agents(self, rows: Iterable[tuple[Any, ...]], as_of: _AsOf) -> list[AgentInfo]:
        """Return the agent of each row; skip corrupt rows and pass them to `on_corrupt`."""
        agents = []
        for row in rows:
            agent = agent_of(row, as_of.now)
            if isinstance(agent, AgentInfo):
                agents.append(with_drain(agent, as_of.drains))
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
            await self.database.write(clear_drains)
            return 0, None

        def work(db: sqlite3.Connection) -> list[int]:
            present = delete_rows(db, _CLEARED, _PRESENT, (cursor, format_instant(self._now())))
            if len(present) < CLEAR_PAGE_SIZE:
                clear_drains(db)
            return present

        present = await self.database.write(work)
        return sum(present), cursor if len(present) == CLEAR_PAGE_SIZE else None

    async def diagnose(self, cursor: Cursor) -> Step[Sequence[Finding]]:
        check, *following = CHECKS if cursor is None else cursor
        return await check(self.database), following or None

    def _now(self) -> datetime:
        return read(self.clock)


def _fetch_all(db: sqlite3.Connection, ids: Sequence[str], now: datetime) -> list[AgentInfo | RegistryError | None]:
    rows = {row[0]: row for row in execute_for_keys(db, _FETCH, (format_instant(now),), ids).fetchall()}
    drains = drains_in(db, now, ids)
    found: list[AgentInfo | RegistryError | None] = [
        agent_of(rows[agent_id], now) if agent_id in rows else None for agent_id in ids
    ]
    return [with_drain(each, drains) if isinstance(each, AgentInfo) else each for each in found] if drains else found


def _stored_starts(db: sqlite3.Connection, ids: Sequence[str], now: datetime) -> dict[str, tuple[int, datetime | None]]:
    """Return the incarnation and the last heartbeat of each agent that is there, even if its row is corrupt."""
    rows = execute_for_keys(db, _STARTS, (format_instant(now),), ids).fetchall()
    return {agent_id: (believed(incarnation, now), _instant(heartbeat)) for agent_id, incarnation, heartbeat in rows}


def _instant(stored: object) -> datetime | None:
    try:
        return parse_instant(stored) if isinstance(stored, str) else None
    except ValueError:
        return None


def _read_starts(
    db: sqlite3.Connection, ids: Sequence[str], now: datetime, starts: dict[str, int]
) -> dict[str, RegistryError]:
    """Add the incarnations of agents to `starts`, and return the errors of corrupt rows by id.

    Only rows that may have changed since they were last read are read.
    """
    unread = [agent_id for agent_id in ids if agent_id not in starts]
    corrupt: dict[str, RegistryError] = {}
    if not unread:
        return corrupt
    if len(starts) > _MAX_STARTS:
        starts.clear()
        unread = [*ids]
    for agent_id, found in zip(unread, _fetch_all(db, unread, now), strict=True):
        if isinstance(found, RegistryError):
            corrupt[agent_id] = found
        elif found is not None:
            starts[agent_id] = found.incarnation
    return corrupt


def _are_usual(beats: Sequence[tuple[str, int]], starts: Mapping[str, int]) -> bool:
    """Return whether each heartbeat is of the start that is stored, or of any, and each row is known to be valid."""
    for agent_id, given in beats:  # A loop, because this is a hot path.
        stored = starts.get(agent_id)
        if stored is None or (given and given != stored):
            return False
    return True


def _verdict(
    beat: tuple[str, int], corrupt: Mapping[str, RegistryError], starts: Mapping[str, int], now: datetime
) -> bool | RegistryError:
    """Return whether a heartbeat may be stored, as `admitted` does; or the error of a corrupt row."""
    agent_id, given = beat
    stored = starts.get(agent_id)
    if stored is None:
        return corrupt.get(agent_id, False)
    return given in (0, stored) or admitted(agent_id, given, stored, now)


def _beat_all(
    db: sqlite3.Connection, ids: Sequence[str], now: datetime, expires_at: str | None
) -> dict[str, Beat] | None:
    """Store heartbeats; return what each found, for each agent that is there. None: all are usual."""
    stamp = format_instant(now)
    values = (stamp, expires_at, stamp)
    usual = _UNDRAINED_WITH_ID if may_be_drained(db, ids) else _ONLINE_WITH_ID
    # One statement per batch in the common case: SQLite runs it without the GIL, so that the event loop continues.
    if update_rows(db, _BEAT, usual, values, ids) == len(set(ids)):
        return None
    # In the same transaction, so that the first statement has left out the others.
    drains = drains_in(db, now, ids)
    update_rows(db, _BEAT, _ONLINE_WITH_ID, values, ids)
    offline = {agent_id for (agent_id,) in execute_for_keys(db, _OFFLINE_IDS, (stamp,), ids).fetchall()}
    if offline:
        update_rows(db, _RETURN, _OFFLINE_WITH_ID, values, [*offline])
    present = execute_for_keys(db, _PRESENT_IDS, (stamp,), ids).fetchall()
    return {
        agent_id: Beat(was_offline=agent_id in offline, draining=drains.get(agent_id))
        if agent_id in offline or agent_id in drains
        else USUAL_BEAT
        for (agent_id,) in present
    }


def _patch_one(
    db: sqlite3.Connection, agent_id: str, fields: AgentChanges, incarnation: int, now: datetime
) -> AgentInfo | RegistryError | None:
    (agent,) = _fetch_all(db, [agent_id], now)
    if not isinstance(agent, AgentInfo):
        return agent
    verdict = admitted(agent_id, incarnation, agent.incarnation, now)
    if verdict is not True:
        return verdict or None
    changed = replace(agent, incarnation=incarnation or agent.incarnation, **fields)
    try:
        check_size(changed)
    except InvalidAgentError as error:
        return error
    columns = {name: stored(name, value) for name, value in fields.items()}
    if changed.incarnation != agent.incarnation:
        columns["incarnation"] = incarnation
    if "status" in columns:
        columns["before_offline"] = ""
    update_rows(db, ", ".join(f"{name} = ?" for name in columns), "id IN (?)", tuple(columns.values()), [agent_id])
    return changed

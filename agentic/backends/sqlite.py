"""Agents in a SQLite file: they survive a restart, and several processes of one host share them."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeVar

import anyio
import anyio.to_thread
from msgspec.structs import replace

from agentic.agent import AgentChanges, AgentInfo, check_size
from agentic.backends.sqlite_connection import Database, backend_error
from agentic.backends.sqlite_doctor import sqlite_findings
from agentic.backends.sqlite_schema import AGENT_COLUMNS, agent_of, json_text, later, prepare, row_of, transaction
from agentic.clock import Clock, format_instant, read, stale_before, system_clock
from agentic.errors import (
    BackendRejectedError,
    ConfigurationError,
    CorruptRecordError,
    InvalidAgentError,
    RegistryClosedError,
    RegistryError,
)
from agentic.findings import Finding
from agentic.options import flag, function, text
from agentic.registry import AgentRegistry
from agentic.seen import Seen
from agentic.urls import file_path

T = TypeVar("T")

DEFAULT_PATH: Final = "~/.config/agentic/registry.db"
PAGE_SIZE: Final = 500

_PRESENT: Final = "(expires_at IS NULL OR expires_at >= ?)"
_INSERT: Final = f"""
INSERT INTO agents ({AGENT_COLUMNS}, expires_at, registered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    name = excluded.name, capabilities = excluded.capabilities, status = excluded.status,
    last_heartbeat = excluded.last_heartbeat, current_load = excluded.current_load, max_load = excluded.max_load,
    metadata = excluded.metadata, expires_at = excluded.expires_at"""
# One statement for a whole batch: it runs in C from end to end, the event loop's thread beside it.
_TOUCH: Final = f"""
UPDATE agents SET last_heartbeat = ?, expires_at = ?,
    status = CASE status WHEN 'offline' THEN 'available' ELSE status END
WHERE {_PRESENT} AND id IN (?)"""
_PRESENT_IDS: Final = f"SELECT id FROM agents WHERE {_PRESENT} AND id IN (?)"
_FETCH: Final = f"SELECT {AGENT_COLUMNS} FROM agents WHERE {_PRESENT} AND id IN (?)"
_DELETE: Final = f"DELETE FROM agents WHERE {_PRESENT} AND id IN (?) RETURNING id"
_PAGE: Final = f"""
SELECT {AGENT_COLUMNS}, rowid FROM agents WHERE {_PRESENT} AND rowid <= ? ORDER BY rowid DESC LIMIT {PAGE_SIZE}"""
_LAST_ROWID: Final = 2**63 - 1
_SWEEP: Final = f"""
UPDATE agents SET status = 'offline' WHERE {_PRESENT} AND status <> 'offline' AND last_heartbeat < ?
RETURNING id"""
_FORGET: Final = "DELETE FROM agents WHERE expires_at < ?"


class SQLiteRegistry(AgentRegistry):
    """A registry in a SQLite file, or in memory with the path `":memory:"`.

    Every change is one transaction, run in one step in the connection's own thread, so a cancelled call leaves none
    open. Write-ahead logging lets others read and write the file meanwhile. Its store's clock is `clock`; an agent
    past its `ttl` is gone for every call, and deleted from the file by `reap`.

    Attributes:
        path: As given.
        synchronous: As given.
        create: As given.
    """

    flushes_per_lane = 2
    _logger = logging.getLogger("agentic.sqlite")

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | timedelta = 5.0,
        stale_after: float | timedelta = 30.0,
        clock: Clock = system_clock,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        create: bool = True,
    ) -> None:
        """Check the options; no I/O.

        Args:
            path: The file, created when it is not there; its folder must exist. None stands for
                `~/.config/agentic/registry.db`, whose folder is created; both are readable by their owner alone.
            ttl: Seconds after its last registration or heartbeat at which an agent is gone; None keeps it.
            timeout: Seconds a call may take, waiting for other processes' writes included.
            stale_after: Seconds of silence after which a reaper marks an agent offline, by default.
            clock: Returns the current instant as an aware `datetime`; called in the connection's thread.
            synchronous: What a power failure may take. `"NORMAL"`: the last writes before it, never the file's
                consistency; a crash of the process takes nothing. `"FULL"`: nothing that was acknowledged, at the price
                of one sync of the disk for each transaction.
            create: Make what is not there yet: the file, its table, and the default file's folder. False, for programs
                that only look: opening raises `BackendRejectedError` where there is no registry, and makes nothing.

        Raises:
            ConfigurationError: An option is wrong.
        """
        super().__init__(ttl=ttl, timeout=timeout, stale_after=stale_after)
        self.path = DEFAULT_PATH if path is None else file_path(path, "path")
        self.clock = function(clock, "clock")
        self.synchronous = synchronous
        if text(synchronous, "synchronous") not in ("NORMAL", "FULL"):
            raise ConfigurationError("synchronous: must be 'NORMAL' or 'FULL'")
        self.create = flag(create, "create")
        self._database: Database | None = None

    def __repr__(self) -> str:
        return f"SQLiteRegistry(path={self.path!r}, ttl={self.ttl})"

    async def _connect(self) -> None:
        try:
            path = (
                await anyio.to_thread.run_sync(_default_file, self.create) if self.path == DEFAULT_PATH else self.path
            )
        except OSError as error:
            raise backend_error(error, f"failed to make {self.path!r}") from error
        except RuntimeError as error:
            raise BackendRejectedError(f"failed to make {self.path!r}: {error} Set HOME, or name a path") from error
        self._database = await Database.opened(
            path,
            lambda db: prepare(db, self.timeout, self.synchronous, create=self.create),
            create=self.create,
        )

    async def _disconnect(self) -> None:
        if self._database is not None:
            database, self._database = self._database, None
            await database.close()

    # --- agents, by id ---

    async def _insert(self, agents: Sequence[AgentInfo]) -> Sequence[AgentInfo]:
        def work(db: sqlite3.Connection) -> list[AgentInfo]:
            with transaction(db):
                now = self._now()
                stored = [agent.stamped(now) for agent in agents]
                stamp, expires_at = format_instant(now), later(now, self.ttl)
                db.executemany(
                    _INSERT,
                    [
                        (*row_of(agent, format_instant(agent.last_heartbeat or now)), expires_at, stamp)
                        for agent in stored
                    ],
                )
                return stored

        return await self._run(work)

    async def _touch(self, ids: Sequence[str]) -> Sequence[bool]:
        def work(db: sqlite3.Connection) -> list[bool]:
            with transaction(db):
                now = self._now()
                stamp = format_instant(now)
                if _for_all(db, _TOUCH, (stamp, later(now, self.ttl), stamp), ids).rowcount == len(set(ids)):
                    return [True] * len(ids)
                # The write lock is held: who is there now was there to be touched.
                present = {agent_id for (agent_id,) in _for_all(db, _PRESENT_IDS, (stamp,), ids).fetchall()}
                return [agent_id in present for agent_id in ids]

        return await self._run(work)

    async def _fetch(self, ids: Sequence[str]) -> Sequence[AgentInfo | RegistryError | None]:
        return await self._run(lambda db: _fetch_all(db, ids, format_instant(self._now())))

    async def _patch(self, changes: Sequence[tuple[str, AgentChanges]]) -> Sequence[AgentInfo | RegistryError | None]:
        def work(db: sqlite3.Connection) -> list[AgentInfo | RegistryError | None]:
            with transaction(db):
                now = format_instant(self._now())
                return [_patch_one(db, agent_id, fields, now) for agent_id, fields in changes]

        return await self._run(work)

    async def _delete(self, ids: Sequence[str]) -> Sequence[bool]:
        def work(db: sqlite3.Connection) -> list[bool]:
            with transaction(db):
                now = format_instant(self._now())
                removed = {agent_id for (agent_id,) in _for_all(db, _DELETE, (now,), ids).fetchall()}
                return [agent_id in removed for agent_id in ids]

        return await self._run(work)

    # --- the whole fleet ---

    async def _times(self) -> Sequence[datetime]:
        return await self._run(lambda _: [self._now()])

    async def _pages(self) -> AsyncGenerator[Sequence[AgentInfo], None]:
        # By rowid, so that nothing stored in a row, however damaged, steers the walk. Downwards, for new rows come on
        # top and VACUUM moves rows down at most. An agent that was registered anew or moved may be met twice.
        upto, seen = _LAST_ROWID, Seen[str]()
        while True:
            rows = await self._run(lambda db: db.execute(_PAGE, (format_instant(self._now()), upto)).fetchall())  # noqa: B023
            agents = []
            for row in rows:
                agent = _decoded(row)
                if isinstance(agent, AgentInfo):
                    agents.append(agent)
                else:
                    self._skip(agent)
            new = set(seen.only_new([agent.id for agent in agents]))
            yield [agent for agent in agents if agent.id in new]
            if len(rows) < PAGE_SIZE:
                break
            upto = rows[-1][-1] - 1
        await seen.forget()

    async def _sweep(self, ttl: timedelta) -> AsyncGenerator[Sequence[str], None]:
        def work(db: sqlite3.Connection) -> list[str]:
            with transaction(db):
                now = self._now()
                stamp = format_instant(now)
                rows = db.execute(_SWEEP, (stamp, format_instant(stale_before(now, ttl))))
                marked: list[str] = []
                # All ids at once would keep Python's interpreter lock from the event loop for too long.
                while page := rows.fetchmany(PAGE_SIZE):
                    marked += [agent_id for (agent_id,) in page]
                db.execute(_FORGET, (stamp,))
                return marked

        yield await self._run(work)

    async def _clear(self) -> AsyncGenerator[int, None]:
        def work(db: sqlite3.Connection) -> int:
            with transaction(db):
                db.execute(_FORGET, (format_instant(self._now()),))
                return db.execute("DELETE FROM agents").rowcount

        yield await self._run(work)

    async def _examine(self) -> AsyncGenerator[Sequence[Finding], None]:
        async with aclosing(sqlite_findings(self)) as findings:
            async for finding in findings:
                yield [finding]

    def _now(self) -> datetime:
        return read(self.clock)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._database is None:
            raise RegistryClosedError
        return await self._database.run(work)


def _for_all(
    db: sqlite3.Connection, statement: str, parameters: tuple[object, ...], ids: Sequence[str]
) -> sqlite3.Cursor:
    """Execute a statement whose last `?` stands for all the ids."""
    # Padded to a power of two, so that few different texts are prepared.
    size = 1 << (len(ids) - 1).bit_length()
    return db.execute(_for_ids(statement, size), (*parameters, *ids, *[ids[-1]] * (size - len(ids))))


@cache
def _for_ids(statement: str, size: int) -> str:
    return statement.replace("IN (?)", f"IN ({', '.join('?' * size)})")


def _fetch_all(db: sqlite3.Connection, ids: Sequence[str], now: str) -> list[AgentInfo | RegistryError | None]:
    rows = {row[0]: row for row in _for_all(db, _FETCH, (now,), ids).fetchall()}
    return [_decoded(rows[agent_id]) if agent_id in rows else None for agent_id in ids]


def _patch_one(
    db: sqlite3.Connection, agent_id: str, fields: AgentChanges, now: str
) -> AgentInfo | RegistryError | None:
    (agent,) = _fetch_all(db, [agent_id], now)
    if not isinstance(agent, AgentInfo):
        return agent
    changed = replace(agent, **fields)
    try:
        check_size(changed)
    except InvalidAgentError as error:
        return error
    columns = {
        name: json_text(value) if name in ("capabilities", "metadata") else value for name, value in fields.items()
    }
    assignments = ", ".join(f"{name} = :{name}" for name in columns)
    db.execute(f"UPDATE agents SET {assignments} WHERE id = :id", {"id": agent_id, **columns})
    return changed


def _decoded(row: tuple[object, ...]) -> AgentInfo | CorruptRecordError:
    """Return a row's agent, or the error that says why there is none in it."""
    try:
        return agent_of(row)
    except (ValueError, RecursionError) as error:
        return CorruptRecordError(f"the row of agent {row[0]!r} is corrupt: {error}", str(row[0]))


def _default_file(create: bool) -> str:
    """Return the default file's path; with `create`, make it and its folder where they are not there yet."""
    path = Path(DEFAULT_PATH).expanduser()
    if not create:
        return str(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return str(path)

"""Plain programs that do the registry's work in the obvious way: per call, one read and one write, or one commit.

They use the registry's codec, so that only the store access is compared. They give none of the registry's guarantees: a
heartbeat here can undo a concurrent change or resurrect a removed agent.
"""

from __future__ import annotations

import asyncio
import builtins
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, cast

import aiosqlite
import msgspec
import redis.asyncio as aioredis
from msgspec.structs import replace

from agentic import AgentInfo, AgentStatus, RedisRegistry
from agentic.backends.redis.scripts import SCRIPTS
from agentic.clock import format_instant, parse_instant
from agentic.dispatch.batcher import BATCH_SIZE
from agentic.wire import decode_agent, encode_agent
from benchmarks.samples import Sample

POOL_SIZE: Final = 64
SCAN_COUNT: Final = 100
TTL_SECONDS: Final = 100_000
TABLE: Final = (
    "CREATE TABLE agents (id TEXT PRIMARY KEY, name TEXT, capabilities TEXT, status TEXT, "
    "last_heartbeat TEXT, current_load INTEGER, max_load INTEGER, metadata TEXT)"
)

HEARTBEAT: Final = (
    "UPDATE agents SET last_heartbeat = ?, "
    "status = CASE status WHEN 'offline' THEN 'available' ELSE status END WHERE id = ?"
)


class Contender(Protocol):
    """A subject of the measurements; `AgentRegistry` is one."""

    async def register(self, agent: AgentInfo, /) -> object:
        """Add or replace an agent."""

    async def heartbeat(self, agent_id: str, /) -> object:
        """Set an agent's heartbeat to now."""

    async def get(self, agent_id: str, /) -> AgentInfo:
        """Return an agent."""

    async def list(self) -> list[AgentInfo]:
        """Return every agent."""

    async def reap(self, ttl: float, /) -> builtins.list[str]:
        """Mark silent agents offline; return their ids."""


class PlainRedis:
    """One key per agent; a heartbeat is GET then SET; a list is SCAN and one GET per key."""

    def __init__(self, client: aioredis.Redis) -> None:
        self._client = client
        self._free_connections = asyncio.Semaphore(POOL_SIZE)

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncGenerator[PlainRedis, None]:
        """Connect with a pool of 64 connections; calls wait for a free one."""
        client = aioredis.Redis.from_url(url, max_connections=POOL_SIZE)
        try:
            await cast("Any", client.ping())
            yield cls(client)
        finally:
            await client.aclose()

    async def register(self, agent: AgentInfo, /) -> object:
        """Write the record, stamped with this process's time unless it has one."""
        return await self._write(agent if agent.last_heartbeat else replace(agent, last_heartbeat=datetime.now(UTC)))

    async def heartbeat(self, agent_id: str, /) -> object:
        """Read the record, and write it back with this process's time."""
        agent = await self.get(agent_id)
        status = AgentStatus.AVAILABLE if agent.status is AgentStatus.OFFLINE else agent.status
        return await self._write(replace(agent, last_heartbeat=datetime.now(UTC), status=status))

    async def get(self, agent_id: str, /) -> AgentInfo:
        """Read the record."""
        return await self._read(_key(agent_id))

    async def list(self) -> list[AgentInfo]:
        """Read the records, one at a time."""
        return [await self._read(key) async for key in self._keys()]

    async def reap(self, ttl: float, /) -> builtins.list[str]:
        """Read the records one at a time, and write each stale one back with the time to live it had left."""
        stale_before = datetime.now(UTC) - timedelta(seconds=ttl)
        reaped = []
        async for key in self._keys():
            agent = await self._read(key)
            if agent.status is not AgentStatus.OFFLINE and _last_heartbeat(agent) < stale_before:
                left = await self._client.ttl(key)
                await self._write(replace(agent, status=AgentStatus.OFFLINE), left if left > 0 else TTL_SECONDS)
                reaped.append(agent.id)
        return reaped

    def _keys(self) -> Any:
        return self._client.scan_iter(match=_key("*"), count=SCAN_COUNT)

    async def _read(self, key: str | bytes) -> AgentInfo:
        async with self._free_connections:
            record = await self._client.get(key)
        if record is None:
            raise LookupError(key)
        return decode_agent(record)

    async def _write(self, agent: AgentInfo, ttl: int = TTL_SECONDS) -> object:
        async with self._free_connections:
            return await self._client.set(_key(agent.id), encode_agent(agent), ex=ttl)


class PlainSQLite:
    """One row per agent; each call is one statement and one commit."""

    def __init__(self, db: aiosqlite.Connection) -> None:
        self._db = db

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path, synchronous: str) -> AsyncGenerator[PlainSQLite, None]:
        """Create the file and its table; SQLite's default for `synchronous` is FULL, the registry's is NORMAL."""
        async with aiosqlite.connect(path, isolation_level=None) as db:
            await db.execute("PRAGMA journal_mode = WAL")
            await db.execute(f"PRAGMA synchronous = {synchronous}")
            await db.execute(TABLE)
            yield cls(db)

    async def register(self, agent: AgentInfo, /) -> object:
        """Write the row, stamped with this process's time unless it has one."""
        row = (
            agent.id,
            agent.name,
            msgspec.json.encode(agent.capabilities).decode(),
            agent.status.value,
            format_instant(agent.last_heartbeat) if agent.last_heartbeat else _now(),
            agent.current_load,
            agent.max_load,
            msgspec.json.encode(agent.metadata).decode(),
        )
        async with self._db.execute("INSERT OR REPLACE INTO agents VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row):
            return None

    async def heartbeat(self, agent_id: str, /) -> object:
        """Write this process's time to the row."""
        async with self._db.execute(HEARTBEAT, (_now(), agent_id)) as cursor:
            if not cursor.rowcount:
                raise LookupError(agent_id)
            return None

    async def get(self, agent_id: str, /) -> AgentInfo:
        """Read the row."""
        async with self._db.execute("SELECT * FROM agents WHERE id = ?", (agent_id,)) as cursor:
            row = await cursor.fetchone()
        if row is None:
            raise LookupError(agent_id)
        return _agent(tuple(row))

    async def list(self) -> list[AgentInfo]:
        """Read the rows."""
        async with self._db.execute("SELECT * FROM agents") as cursor:
            return [_agent(tuple(row)) for row in await cursor.fetchall()]

    async def reap(self, ttl: float, /) -> builtins.list[str]:
        """Change the stale rows in one statement."""
        stale_before = format_instant(datetime.now(UTC) - timedelta(seconds=ttl))
        statement = "UPDATE agents SET status = 'offline' WHERE status <> 'offline' AND last_heartbeat < ? RETURNING id"
        async with self._db.execute(statement, (stale_before,)) as cursor:
            return [agent_id for (agent_id,) in await cursor.fetchall()]


class BareScript:
    """The registry's heartbeat script called directly by the driver: an upper bound for the registry."""

    def __init__(self, client: aioredis.Redis, registry: RedisRegistry, sha: str) -> None:
        self._execute: Callable[..., Awaitable[object]] = client.execute_command
        self._registry = registry
        self._sha = sha

    @classmethod
    async def made(cls, client: aioredis.Redis, registry: RedisRegistry) -> BareScript:
        """Load the script."""
        return cls(client, registry, await cast("Any", client.script_load(SCRIPTS["heartbeat"][1])))

    async def heartbeat(self, agent_id: str, /) -> object:
        """Send one heartbeat."""
        key = f"{self._registry.prefix}:agent:{agent_id}"
        return await self._execute("EVALSHA", self._sha, 1, key, TTL_SECONDS * 1000, 0)

    async def heartbeats(self, ids: Sequence[str], seconds: float) -> Sample:
        """Send batches with the registry's batch size and concurrency until the time is over."""
        keys = [f"{self._registry.prefix}:agent:{agent_id}".encode() for agent_id in ids]
        done = 0
        began = time.perf_counter()

        async def work(at: int) -> None:
            nonlocal done
            while time.perf_counter() < began + seconds:
                some = keys[at : at + BATCH_SIZE]
                await self._execute("EVALSHA", self._sha, len(some), *some, TTL_SECONDS * 1000, *[0] * len(some))
                done += len(some)
                at = (at + BATCH_SIZE) % (len(keys) - BATCH_SIZE)

        async with asyncio.TaskGroup() as group:
            for flight in range(self._registry.backend.max_batches):
                group.create_task(work(flight * BATCH_SIZE))
        return Sample(done / (time.perf_counter() - began))


class BareSQLite:
    """Heartbeats by the blocking sqlite3 module in a thread, on the registry's file, with one commit per batch."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path) -> AsyncGenerator[BareSQLite, None]:
        """Open a file that a registry has created."""
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:
            db.execute("PRAGMA synchronous = NORMAL")
            yield cls(db)

    async def heartbeats(self, ids: Sequence[str], seconds: float) -> Sample:
        """Write heartbeats until the time is over."""
        return await asyncio.to_thread(self._heartbeats, ids, seconds)

    def _heartbeats(self, ids: Sequence[str], seconds: float) -> Sample:
        done, at = 0, 0
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            some = ids[at : at + BATCH_SIZE]
            now = _now()
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(HEARTBEAT, [(now, agent_id) for agent_id in some])
            self._db.execute("COMMIT")
            done += len(some)
            at = (at + BATCH_SIZE) % (len(ids) - BATCH_SIZE)
        return Sample(done / (time.perf_counter() - began))


def _key(agent_id: str) -> str:
    return f"plain:agent:{agent_id}"


def _now() -> str:
    return format_instant(datetime.now(UTC))


def _last_heartbeat(agent: AgentInfo) -> datetime:
    assert agent.last_heartbeat is not None
    return agent.last_heartbeat


def _agent(row: tuple[Any, ...]) -> AgentInfo:
    return AgentInfo(
        id=row[0],
        name=row[1],
        capabilities=msgspec.json.decode(row[2], type=tuple[str, ...]),
        status=AgentStatus(row[3]),
        last_heartbeat=parse_instant(row[4]),
        current_load=row[5],
        max_load=row[6],
        metadata=msgspec.json.decode(row[7], type=dict[str, str]),
    )

"""The stores of this package, for the contract and other tests that run on every store."""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis

from agentic import AgentRegistry, MemoryRegistry, RedisRegistry, SQLiteRegistry
from agentic.backends.redis.backend import RedisBackend
from agentic.backends.redis.keys import Keys, ShardedKeys
from agentic.backends.sqlite.rows import AGENT_COLUMNS
from agentic.clock import format_instant, parse_instant
from agentic.testing import StoreUnderTest

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ALL_STORES = ("memory", "sqlite-memory", "sqlite-file", "redis", "redis-sentinel", "redis-cluster")
SHARED_STORES = ("sqlite-file", "redis")


class MemoryStore(StoreUnderTest):
    lacks = {
        "corruption": "objects in memory cannot be damaged",
        "foreign writes": "no other program can write to this process's memory",
        "sharing": "each registry has agents of its own",
    }

    def make(self, **options: Any) -> MemoryRegistry:
        return MemoryRegistry(clock=self.clock, **options)


class SQLiteMemoryStore(StoreUnderTest):
    """A database in memory, visible only to its own connection."""

    lacks = {"sharing": "each registry has a database of its own"}

    def make(self, **options: Any) -> SQLiteRegistry:
        self._registry = SQLiteRegistry(":memory:", clock=self.clock, **options)
        return self._registry

    async def corrupt(self, agent_id: str) -> None:
        await self._registry.backend.database.write(lambda db: _damage(db, agent_id))

    async def rewrite(self, agent_id: str, incarnation: object = None) -> None:
        database = self._registry.backend.database
        await database.write(lambda db: _rewrite(db, agent_id, incarnation))
        database.starts.clear()  # As if another connection had written.


class SQLiteStore(StoreUnderTest):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make(self, **options: Any) -> SQLiteRegistry:
        return SQLiteRegistry(self._path, clock=self.clock, **options)

    async def corrupt(self, agent_id: str) -> None:
        with closing(sqlite3.connect(self._path)) as db, db:
            _damage(db, agent_id)

    async def rewrite(self, agent_id: str, incarnation: object = None) -> None:
        with closing(sqlite3.connect(self._path)) as db, db:
            _rewrite(db, agent_id, incarnation)


def _damage(db: sqlite3.Connection, agent_id: str) -> None:
    columns = AGENT_COLUMNS.replace("id, ", "", 1).replace("metadata", "'no JSON'")
    db.execute(
        f"INSERT OR REPLACE INTO agents ({AGENT_COLUMNS}) SELECT id, {columns} FROM agents WHERE id = ?", (agent_id,)
    )


def _rewrite(db: sqlite3.Connection, agent_id: str, incarnation: object) -> None:
    values = (0 if incarnation is None else incarnation, agent_id)
    db.execute("UPDATE agents SET unready = '', before_offline = '', incarnation = ? WHERE id = ?", values)


_HEARTBEAT = re.compile(rb'(?<="last_heartbeat":")[^"]*')


def _earlier(stamp: bytes, seconds: float) -> bytes:
    try:
        instant = parse_instant(stamp.decode()) - timedelta(seconds=seconds)
    except OverflowError:
        return stamp
    return format_instant(instant).encode()


class RedisStore(StoreUnderTest):
    """A store with its own prefix; new keys under any other prefix fail the test."""

    drops_expired = True
    lacks = {"clock during a sweep": "time is moved by changing the records, which a sweep would see"}

    def __init__(self, url: str, client: Any = None) -> None:
        super().__init__()
        self.url = url
        self.prefix = f"test-{uuid.uuid4().hex[:8]}"
        self.keys = (ShardedKeys if isinstance(client, redis.RedisCluster) else Keys)(self.prefix)
        self.client = client or redis.Redis.from_url(url)
        self._foreign = self._keys_elsewhere()

    def make(self, **options: Any) -> RedisRegistry:
        return RedisRegistry(self.url, prefix=self.prefix, **options)

    async def corrupt(self, agent_id: str) -> None:
        self.client.set(self.keys.agent(agent_id), '{"id":"' + agent_id, keepttl=True)

    async def rewrite(self, agent_id: str, incarnation: object = None) -> None:
        key = self.keys.agent(agent_id)
        record: Any = self.client.get(key)
        fields = json.loads(record)
        for name in ("unready", "before_offline", "incarnation"):
            fields.pop(name, None)
        if incarnation is not None:
            fields["incarnation"] = incarnation
        self.client.set(key, json.dumps(fields, separators=(",", ":"), ensure_ascii=False), keepttl=True)

    def stop_clock(self, registry: AgentRegistry, now: datetime) -> None:
        async def stopped(node: object) -> datetime:
            return now

        assert isinstance(registry.backend, RedisBackend)
        registry.backend.time_of = stopped  # type: ignore[method-assign]

    async def pass_time(self, seconds: float) -> None:
        """Age every record: move its heartbeat back and shorten the TTL of its key."""
        keys = list(self.client.scan_iter(f"*{self.prefix}:*agent:*"))
        reads, writes = self.client.pipeline(transaction=False), self.client.pipeline(transaction=False)
        for key in keys:
            reads.pttl(key)
            reads.get(key)
        read: list[Any] = reads.execute() if keys else []
        for key, left, record in zip(keys, read[::2], read[1::2], strict=True):
            writes.set(key, _HEARTBEAT.sub(lambda found: _earlier(found[0], seconds), record), keepttl=True)
            if left > 0:
                writes.pexpire(key, max(left - round(seconds * 1000), -1))
        if keys:
            writes.execute()

    async def step_back(self, seconds: float) -> None:
        await self.pass_time(-seconds)

    def connections(self) -> list[int]:
        nodes = (
            [node.redis_connection for node in self.client.get_nodes()]
            if hasattr(self.client, "get_nodes")
            else [self.client]
        )
        return [len(node.client_list(_type="normal")) for node in nodes]

    def close(self) -> None:
        """Delete this store's keys, and check that no other keys were added."""
        deletes = self.client.pipeline(transaction=False)
        for key in self.client.scan_iter(f"*{self.prefix}:*"):
            deletes.delete(key)
        deletes.execute()
        leaked = self._keys_elsewhere() - self._foreign
        self.client.close()
        assert not leaked, f"keys left behind: {leaked}"

    def _keys_elsewhere(self) -> set[bytes]:
        return {key for key in self.client.scan_iter() if self.prefix.encode() not in key}

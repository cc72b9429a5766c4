"""The stores as the shared tests see them: how to make a registry on one, move its clock, damage a record in it."""

from __future__ import annotations

import re
import sqlite3
import uuid
from abc import ABC, abstractmethod
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

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ALL_STORES = ("memory", "sqlite-memory", "sqlite-file", "redis", "redis-sentinel", "redis-cluster")
SHARED_STORES = ("sqlite-file", "redis")


class Clock:
    """A clock that stands at the real time until it is moved or stopped."""

    def __init__(self) -> None:
        self._offset = timedelta(0)
        self._stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        return self._stopped_at or datetime.now(UTC) + self._offset

    def advance(self, seconds: float) -> None:
        self._offset += timedelta(seconds=seconds)

    def stop(self, at: datetime) -> None:
        self._stopped_at = at


class Store(ABC):
    """One store, empty at first, on which any number of registries may be made.

    Attributes:
        drops_expired: Whether the store itself removes an agent when the registry's `ttl` is over, so that no `reap`
            can report it.
    """

    drops_expired = False

    @abstractmethod
    def make(self, **options: Any) -> AgentRegistry:
        """Return an unopened registry on the store; options as of the registry's class."""

    @abstractmethod
    def corrupt(self, agent_id: str) -> None:
        """Damage the stored record of an agent."""

    @abstractmethod
    def stop_sweeps_at(self, registry: AgentRegistry, now: datetime) -> None:
        """Let `reap` of this registry see this instant as the store's now."""

    @abstractmethod
    async def let_pass(self, seconds: float) -> None:
        """Let the store's time go on by at least so many seconds."""

    @abstractmethod
    async def step_back(self, seconds: float) -> None:
        """Set the store's clock back by so many seconds."""

    def connections(self) -> list[int]:
        """Return how many connections each of the store's servers has, the test's own and those among servers included."""
        return []

    def close(self) -> None:  # noqa: B027  most stores leave nothing
        """Remove what the store left outside the process, and check that it is no more than it should be."""


class MemoryStore(Store):
    def __init__(self) -> None:
        self.clock = Clock()
        self._registry: MemoryRegistry | None = None

    def make(self, **options: Any) -> MemoryRegistry:
        self._registry = MemoryRegistry(clock=self.clock, **options)
        return self._registry

    def corrupt(self, agent_id: str) -> None:
        raise NotImplementedError("objects in memory cannot be damaged")

    def stop_sweeps_at(self, registry: AgentRegistry, now: datetime) -> None:
        self.clock.stop(now)

    async def let_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def step_back(self, seconds: float) -> None:
        self.clock.advance(-seconds)


class SQLiteStore(Store):
    def __init__(self, path: Path | None) -> None:
        self.clock = Clock()
        self._path = ":memory:" if path is None else str(path)

    def make(self, **options: Any) -> SQLiteRegistry:
        return SQLiteRegistry(self._path, clock=self.clock, **options)

    def corrupt(self, agent_id: str) -> None:
        assert self._path != ":memory:", "only its own connection sees a database in memory"
        with closing(sqlite3.connect(self._path)) as db, db:
            columns = AGENT_COLUMNS.replace("id, ", "", 1).replace("metadata", "'no JSON'")
            db.execute(
                f"INSERT OR REPLACE INTO agents ({AGENT_COLUMNS}) SELECT id, {columns} FROM agents WHERE id = ?",
                (agent_id,),
            )

    def stop_sweeps_at(self, registry: AgentRegistry, now: datetime) -> None:
        self.clock.stop(now)

    async def let_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def step_back(self, seconds: float) -> None:
        self.clock.advance(-seconds)


_HEARTBEAT = re.compile(rb'(?<="last_heartbeat":")[^"]*')


def _earlier(stamp: bytes, seconds: float) -> bytes:
    try:
        instant = parse_instant(stamp.decode()) - timedelta(seconds=seconds)
    except OverflowError:
        return stamp
    return format_instant(instant).encode()


class RedisStore(Store):
    """Keys under a prefix of its own; what is left under any other prefix fails the test."""

    drops_expired = True

    def __init__(self, url: str, client: Any = None) -> None:
        self.url = url
        self.prefix = f"test-{uuid.uuid4().hex[:8]}"
        self.keys = (ShardedKeys if isinstance(client, redis.RedisCluster) else Keys)(self.prefix)
        self.client = client or redis.Redis.from_url(url)
        self._foreign = self._keys_elsewhere()

    def make(self, **options: Any) -> RedisRegistry:
        return RedisRegistry(self.url, prefix=self.prefix, **options)

    def corrupt(self, agent_id: str) -> None:
        self.client.set(self.keys.agent(agent_id), '{"id":"' + agent_id, keepttl=True)

    def stop_sweeps_at(self, registry: AgentRegistry, now: datetime) -> None:
        async def stopped(node: object) -> datetime:
            return now

        assert isinstance(registry.backend, RedisBackend)
        registry.backend.time_of = stopped  # type: ignore[method-assign]

    async def let_pass(self, seconds: float) -> None:
        """Make every record older by so many seconds: its heartbeat, and its key's time to live."""
        for key in self.client.scan_iter(f"*{self.prefix}:*agent:*"):
            left: Any = self.client.pttl(key)
            record: Any = self.client.get(key)
            aged = _HEARTBEAT.sub(lambda found: _earlier(found[0], seconds), record)
            self.client.set(key, aged, keepttl=True)
            if left > 0:
                self.client.pexpire(key, max(left - round(seconds * 1000), -1))

    async def step_back(self, seconds: float) -> None:
        await self.let_pass(-seconds)

    def connections(self) -> list[int]:
        nodes = (
            [node.redis_connection for node in self.client.get_nodes()]
            if hasattr(self.client, "get_nodes")
            else [self.client]
        )
        return [len(node.client_list(_type="normal")) for node in nodes]

    def close(self) -> None:
        for key in self.client.scan_iter(f"*{self.prefix}:*"):
            self.client.delete(key)
        leaked = self._keys_elsewhere() - self._foreign
        self.client.close()
        assert not leaked, f"keys left behind: {leaked}"

    def _keys_elsewhere(self) -> set[bytes]:
        return {key for key in self.client.scan_iter() if self.prefix.encode() not in key}

"""The stores of a run, and their faults."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final, Self

import redis
import redis.asyncio as aioredis

from agentic.testing.servers import RedisServer, free_port
from tests.chaos.checker import CUT_OFF, LOSES_DATA
from tests.chaos.history import Note
from tests.chaos.setting import TIMEOUT
from tests.support.proxy import Proxy

Fault = Callable[[float], Awaitable[Note | None]]
"""Injects a fault for about this many seconds; may return a note of a condition that was true meanwhile."""


class ChaosStore(ABC):
    """A store with a separate URL for each client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stack.aclose()

    @abstractmethod
    async def start(self) -> None: ...

    @abstractmethod
    async def url(self) -> str:
        """Return a URL for another client."""

    @property
    @abstractmethod
    def faults(self) -> Mapping[str, Fault]: ...

    @abstractmethod
    async def left_open(self, pids: list[int]) -> str:
        """Return what the client processes still have open of this store; empty if nothing."""


class SQLiteStore(ChaosStore):
    """A file."""

    async def start(self) -> None:
        self._path = self.folder / "fleet.db"

    async def url(self) -> str:
        return f"sqlite://{self._path}"

    @property
    def faults(self) -> Mapping[str, Fault]:
        return {"somebody holds the write lock": self._lock, "the log is truncated": self._truncate}

    async def _lock(self, seconds: float) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=5)) as db:
            db.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(seconds)

    async def _truncate(self, seconds: float) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=5)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    async def left_open(self, pids: list[int]) -> str:
        found = []
        for pid in pids:
            with suppress(OSError):  # it has exited, or this system has no /proc
                files = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
                found += [f"{pid}: {file}" for file in files if file.startswith(str(self._path))]
        return " ".join(found)


class RedisStore(ChaosStore):
    """A server that persists its data, with a proxy for each client."""

    async def start(self) -> None:
        # With "everysec", a slow disk delays writes, and a kill could lose acknowledged ones.
        keeps = ("--appendonly", "yes", "--appendfsync", "always")
        allows = ("--enable-debug-command", "yes", "--busy-reply-threshold", "200")
        self._server = self.stack.enter_context(RedisServer(*keeps, *allows))
        self._proxies: list[Proxy] = []
        self._admin = aioredis.Redis(port=self._server.port, client_name="runner")
        self.stack.push_async_callback(self._admin.aclose)

    async def url(self) -> str:
        proxy = await self.stack.enter_async_context(Proxy(self._server.port))
        self._proxies.append(proxy)
        return proxy.url

    @property
    def faults(self) -> Mapping[str, Fault]:
        return {
            "the server stops for a while": self._pause,
            "the server is killed and restarted with its data": self._restart,
            f"the server is killed and restarted empty; {LOSES_DATA}": self._restart_empty,
            f"FLUSHALL; {LOSES_DATA}": self._flush,
            f"agents are evicted; {LOSES_DATA}": self._evict,
            "answers are lost": self._lose,
            "answers are cut in half": self._cut,
            "answers are late": self._delay,
            "connections are killed": self._kill_connections,
            "the scripts are forgotten": self._forget_scripts,
            "the server sleeps": self._sleep,
            "a script blocks the server": self._block,
            "the memory is full": self._fill,
            "the server is demoted, and does not reach its primary": self._demote,
            "requests are delayed": self._delay_requests,
            "the server wants replicas": self._want_replicas,
        }

    async def left_open(self, pids: list[int]) -> str:
        clients: Any = await self._admin.client_list(_type="normal")
        return " ".join(str(client) for client in clients if client["name"] != "runner")

    async def _pause(self, seconds: float) -> None:
        self._server.pause()
        await asyncio.sleep(seconds)
        self._server.resume()

    async def _restart(self, seconds: float) -> None:
        self._server.stop()
        await asyncio.sleep(seconds / 2)
        await asyncio.to_thread(self._server.start)

    async def _restart_empty(self, seconds: float) -> None:
        self._server.stop()
        shutil.rmtree(self._server.folder / "appendonlydir")
        await asyncio.sleep(seconds / 2)
        await asyncio.to_thread(self._server.start)

    async def _flush(self, seconds: float) -> None:
        await self._ask("FLUSHALL")

    async def _evict(self, seconds: float) -> None:
        await self._ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        await self._fill(0.1)
        await self._ask("CONFIG", "SET", "maxmemory-policy", "noeviction")

    async def _lose(self, seconds: float) -> None:
        for proxy in self._proxies:
            proxy.answers_to_lose = 2

    async def _cut(self, seconds: float) -> None:
        for proxy in self._proxies:
            proxy.answers_to_cut = 2

    async def _delay(self, seconds: float) -> None:
        for proxy in self._proxies:
            proxy.delay = seconds / 4
        await asyncio.sleep(seconds)
        for proxy in self._proxies:
            proxy.delay = 0

    async def _kill_connections(self, seconds: float) -> None:
        await self._ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _forget_scripts(self, seconds: float) -> None:
        await self._ask("SCRIPT", "FLUSH")

    async def _sleep(self, seconds: float) -> None:
        await self._ask("DEBUG", "SLEEP", seconds)

    async def _block(self, seconds: float) -> None:
        # Open two connections first: the handshake of a new one would fail while the server accepts only SCRIPT KILL.
        await asyncio.gather(self._ask("PING"), self._ask("PING"))
        blocking = asyncio.create_task(self._ask("EVAL", "while true do end", 0))
        await asyncio.sleep(max(0.5, seconds))
        await self._ask("SCRIPT", "KILL")
        with suppress(redis.ResponseError):
            await blocking

    async def _fill(self, seconds: float) -> None:
        await self._ask("CONFIG", "SET", "maxmemory", 1)
        await asyncio.sleep(seconds)
        await self._ask("CONFIG", "SET", "maxmemory", 0)

    async def _demote(self, seconds: float) -> Note:
        await self._ask("REPLICAOF", "127.0.0.1", free_port())
        start = time.monotonic()
        await asyncio.sleep(seconds)
        end = time.monotonic()
        await self._ask("REPLICAOF", "NO", "ONE")
        return Note(who="runner", kind=CUT_OFF, start=start, end=end)

    async def _delay_requests(self, seconds: float) -> None:
        """Block the requests of the current connections for longer than a call's timeout, then deliver them."""
        release = [proxy.hold_requests() for proxy in self._proxies]
        await asyncio.sleep(TIMEOUT + seconds)
        for each in release:
            each()

    async def _want_replicas(self, seconds: float) -> None:
        await self._ask("CONFIG", "SET", "min-replicas-to-write", 1)
        await asyncio.sleep(seconds)
        await self._ask("CONFIG", "SET", "min-replicas-to-write", 0)

    async def _ask(self, *command: object) -> Any:
        return await self._admin.execute_command(*command)  # type: ignore[no-untyped-call]


STORES: Final[dict[str, type[ChaosStore]]] = {"redis": RedisStore, "sqlite": SQLiteStore}


def length(chance: random.Random) -> float:
    """Return the duration of a fault: often below a call's timeout, sometimes above an agent's `ttl`."""
    return chance.choice([chance.uniform(0.1, 0.8), chance.uniform(0.8, 3.0)])

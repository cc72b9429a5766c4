"""What a registry asks of Redis, and what of it may be sent twice; and how one server is asked, or a primary."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

import redis.asyncio as aioredis
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agentic.backends.redis_client import backend_error
from agentic.backends.redis_requests import Command, Request
from agentic.errors import BackendError, RegistryClosedError

T = TypeVar("T")

PATIENCE: Final = 0.8
"""For which part of `timeout` requests are sent again while their slot moves: some is left to say so."""

MOVING_PAUSE: Final = 0.01
"""Seconds between those tries."""


class Scanned(NamedTuple):
    """A step of a scan: by which run of which server, where it goes on (0 at its end), and the keys that it found."""

    server: bytes
    cursor: int
    keys: list[bytes]


Page = tuple[list[bytes | None], Scanned | None]
"""Records, and the step of a scan that was asked for beside them."""


# As bytes, so that the driver gives the answer as it is: it would read all of it, for one line.
WHO_ARE_YOU: Final = (b"INFO", b"server")


def scanned_by(info: Any, found: Any) -> Scanned:
    """Return the step that a server's answers to `WHO_ARE_YOU` and to a `SCAN` make; raises the error of the latter."""
    run = re.search(rb"run_id:(\w+)", info) if isinstance(info, bytes) else None  # Not every user may ask for it.
    if isinstance(found, Exception):
        raise found
    return Scanned(run[1] if run else b"", int(found[0]), found[1])


class Servers(ABC):
    """What a registry asks of Redis; each call is bounded by the caller's deadline.

    A call that may be repeated is tried twice when its connection broke; every other one once.
    """

    def __init__(self, max_connections: int, timeout: float) -> None:
        self._patience = PATIENCE * timeout
        # The driver's own pool that waits has been seen to leave a caller waiting beside free connections.
        self._free_connections = asyncio.Semaphore(max_connections)
        self._closed = False

    @abstractmethod
    async def ping(self) -> None:
        """Connect; raises the driver's own errors."""

    async def aclose(self) -> None:
        """Close every connection; what is still under way fails, and makes no new one."""
        self._closed = True
        await self._close()

    @abstractmethod
    async def _close(self) -> None: ...

    async def run(self, requests: Sequence[Request]) -> None:
        """Send requests until each of their keys has its outcome, which may be its error."""
        until = monotonic() + self._patience
        while requests:
            replies = await self._replies(requests)
            moving = [_is_moving(reply) and monotonic() < until for reply in replies]
            if any(moving):
                await asyncio.sleep(MOVING_PAUSE)
            requests = [
                again
                for request, reply, moves in zip(requests, replies, moving, strict=True)
                for again in ([request] if moves else request.settle(reply))
            ]

    @abstractmethod
    async def _replies(self, requests: Sequence[Request]) -> Sequence[Any]:
        """Send each request once; return each one's reply, or its error."""

    @abstractmethod
    async def records(self, keys: Sequence[bytes]) -> list[Any]:
        """Return what each key holds, None where it is not there; or its error."""

    @abstractmethod
    async def nodes(self) -> Sequence[Any]:
        """Find out which servers hold the keys, each to be scanned by itself, and return them."""

    @abstractmethod
    def layout(self) -> object:
        """Return which server holds which keys, as `nodes` has found; it changes when keys move."""

    @abstractmethod
    async def ask(self, node: Any, *command: Any) -> Any:
        """Send a read to one of the nodes."""

    @abstractmethod
    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        """Return the records of a scan's last keys, and take its next step, side by side."""

    @abstractmethod
    async def broken(self, error: Exception) -> None:
        """Make the next try reach another server, after an error that asks for that."""

    def given_up(self) -> None:  # noqa: B027  one server needs nothing
        """Take note that a call was given up, perhaps since its server hangs."""

    async def driven(self, call: Callable[[], Awaitable[T]], *, repeatable: bool) -> T:
        """Await the driver, with a connection for it, its errors mapped."""
        try:
            async with self._free_connections:
                self._check_open()
                try:
                    return await call()
                except AuthenticationError:
                    raise
                except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, ClusterDownError) as error:
                    self._check_open()
                    await self.broken(error)
                    if not repeatable or not isinstance(error, RedisConnectionError):
                        raise
                return await call()
        except asyncio.CancelledError:
            self.given_up()
            raise
        except (RedisError, RedisClusterException, OSError) as error:
            raise backend_error(error, "Redis failed") from error

    def _check_open(self) -> None:
        if self._closed:
            raise RegistryClosedError


class OneServer(Servers):
    """One server and its replicas; with Sentinel, whichever of them is the primary."""

    def __init__(self, client: aioredis.Redis, max_connections: int, timeout: float) -> None:
        super().__init__(max_connections, timeout)
        self._client = client
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command

    async def ping(self) -> None:
        await self._execute("PING")

    async def _close(self) -> None:
        await self._client.aclose()

    async def _replies(self, requests: Sequence[Request]) -> Sequence[Any]:
        return [await self._reply(request) for request in requests]

    async def _reply(self, request: Request) -> Any:
        try:
            return await self.driven(lambda: self._execute(*request.command()), repeatable=request.repeatable)
        except BackendError as error:
            return error

    async def records(self, keys: Sequence[bytes]) -> list[Any]:
        return list(await self._command("MGET", *keys, repeatable=True))

    async def nodes(self) -> Sequence[Any]:
        return [None]

    def layout(self) -> object:
        return None

    async def ask(self, node: Any, *command: Any) -> Any:
        return await self._command(*command, repeatable=True)

    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        commands = [("MGET", *keys)] if keys else []
        if scan is not None:
            commands += [WHO_ARE_YOU, scan]

        async def call() -> Page:
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies = await pipeline.execute(raise_on_error=False)
            if keys and isinstance(replies[0], Exception):
                raise replies[0]
            return replies[0] if keys else [], None if scan is None else scanned_by(*replies[-2:])

        return await self.driven(call, repeatable=True)

    async def broken(self, error: Exception) -> None:
        if isinstance(error, ReadOnlyError):
            # A primary that has become a replica: new connections may find the new primary behind the same name.
            await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _command(self, *command: Any, repeatable: bool) -> Any:
        return await self.driven(lambda: self._execute(*command), repeatable=repeatable)


def _is_moving(reply: Any) -> bool:
    """Tell whether a request was refused since its slot is being moved, or has been."""
    return isinstance(reply, BackendError) and isinstance(reply.__cause__, (MovedError, TryAgainError))

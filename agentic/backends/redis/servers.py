"""The commands a registry needs, which of them may be retried, and their form for one server."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from math import inf
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar, cast

import redis.asyncio as aioredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agentic.backends.redis.client import backend_error, brief
from agentic.backends.redis.connection import Pool
from agentic.backends.redis.requests import Command, Request
from agentic.backends.redis.server_info import (
    DRIVER_ERRORS,
    HELLO,
    LATEST,
    PARSE_ERRORS,
    REPLICATION,
    TIME,
    Greeting,
    Kind,
    NotInSync,
    OutOfStep,
    checked_list,
    is_refusal,
    time_of,
    unwrap,
)
from agentic.errors import BackendError, RegistryClosedError

T = TypeVar("T")

RESEND_FRACTION: Final = 0.8
"""Fraction of `timeout` in which requests are resent while their slot moves; the rest is left to report the error."""

MOVING_PAUSE: Final = 0.01
"""Seconds between these attempts."""

POOL_PAUSE: Final = 0.005
"""Seconds between attempts to get a connection from an exhausted pool that other code shares."""

_TOO_MANY: Final = "Too many connections"
"""The driver's message for an exhausted pool; up to redis-py 7.1 it has no error class of its own."""


class Scanned(NamedTuple):
    """One SCAN reply: the run id of the server, the next cursor (0 at the end), and the keys."""

    server: bytes
    cursor: int
    keys: list[bytes]


class Page(NamedTuple):
    """The values of keys (None if absent or not a string), the server time of each, and a SCAN reply."""

    records: Sequence[bytes | None]
    times: Sequence[datetime]
    scanned: Scanned | None


# As bytes, so that the driver returns the raw reply: it would parse all of it for one line.
RUN_ID_QUERY: Final = (b"INFO", b"server")
PING: Final = (b"PING",)

RECONNECT_ERRORS: Final = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, ClusterDownError, *PARSE_ERRORS)
"""Errors after which a new connection, or another server, may work."""


def scanned_by(info: Any, found: Any) -> Scanned:
    """Combine the replies to `RUN_ID_QUERY` and `SCAN`; raise if the latter is an error."""
    run = re.search(rb"run_id:(\w+)", info) if isinstance(info, bytes) else None  # Some users lack the permission.
    cursor, keys = checked_list(found, 2)
    return Scanned(run[1] if run else b"", int(cursor), keys)


class Servers(ABC):
    """The commands that a registry sends to Redis; the caller bounds each call by its deadline.

    After a lost connection, a repeatable call is tried once more; any other call fails.

    Attributes:
        database: The number of the database.
    """

    database = 0

    def __init__(self, max_connections: int, timeout: float) -> None:
        self._timeout = timeout
        # Not the driver's blocking pool: it can leave a caller blocked although connections are free.
        self._free_connections = asyncio.Semaphore(max_connections)
        self._time_query: tuple[Command, ...] = (TIME,)
        self._closed = False

    @abstractmethod
    async def ping(self) -> None:
        """Connect and check the servers; raises the driver's errors."""

    async def aclose(self) -> None:
        """Close every connection; calls in progress fail and do not reconnect."""
        self._closed = True
        await self._close()

    @abstractmethod
    async def _close(self) -> None: ...

    async def run(self, requests: Sequence[Request]) -> None:
        """Send requests until each of their keys has an outcome, which may be an error."""
        until = monotonic() + RESEND_FRACTION * self._timeout
        while requests:
            replies = await self._replies(requests)
            is_late = monotonic() > until
            is_moving = False
            left: list[Request] = []
            for request, reply in zip(requests, replies, strict=True):
                refusal = reply.__cause__ if isinstance(reply, BackendError) and not is_late else None
                if isinstance(refusal, (MovedError, TryAgainError)):
                    is_moving = True
                    left += [request] if isinstance(refusal, MovedError) else request.while_moving()
                else:
                    left += request.settle(reply)
            if is_moving:
                await asyncio.sleep(MOVING_PAUSE)
            requests = left

    @abstractmethod
    async def _replies(self, requests: Sequence[Request]) -> Sequence[Any]:
        """Send each request once; return its reply or error, and for a read a pair of reply and server time."""

    @abstractmethod
    async def nodes(self) -> Sequence[Any]:
        """Find and return the servers that own keys; each must be scanned separately."""

    @abstractmethod
    def layout(self) -> object:
        """Return a value that changes when keys move between servers, as far as known since `nodes`."""

    @abstractmethod
    async def ask(self, node: Any, *command: Any) -> Any:
        """Send a read to one of the nodes."""

    @abstractmethod
    async def time(self, node: Any) -> datetime:
        """Return the time of one of the nodes, if it is in sync."""

    @abstractmethod
    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        """Read the records of the scan's previous keys, and concurrently send its next SCAN."""

    @abstractmethod
    async def on_connection_lost(self, error: Exception) -> None:
        """Prepare for the next attempt to use a new connection, perhaps to another server."""

    def on_abandoned(self, waited: float) -> None:  # noqa: B027  not every kind needs it
        """Handle a call cancelled after `waited` seconds; its server may be hanging."""

    async def execute(self, call: Callable[..., Awaitable[T]], *args: Any, repeatable: bool) -> T:
        """Wait for a free connection, then await a call to the driver; translate the driver's errors.

        Args:
            call: The call.
            *args: Its arguments.
            repeatable: Retry once after a lost connection.
        """
        began = inf
        is_repeated = False
        try:
            async with self._free_connections:
                while True:
                    if self._closed:
                        raise RegistryClosedError
                    began = min(began, monotonic())
                    try:
                        return await call(*args)
                    except RECONNECT_ERRORS as error:
                        if lacks_connection(error):
                            await asyncio.sleep(POOL_PAUSE)
                        elif is_repeated:
                            raise
                        else:
                            await self._recover(error, repeatable)
                            is_repeated = True
        except asyncio.CancelledError:
            self.on_abandoned(monotonic() - began)
            raise
        except DRIVER_ERRORS as error:
            raise backend_error(error, "Redis failed") from brief(error)

    async def _recover(self, error: Exception, repeatable: bool) -> None:
        """Prepare for later calls after a lost connection; re-raise the error unless this call may be repeated."""
        if isinstance(error, AuthenticationError):
            raise error
        if self._closed:
            raise RegistryClosedError from error
        await self.on_connection_lost(error)
        if not repeatable or not isinstance(error, RedisConnectionError):
            raise error

    def _parse_time(self, reply: Any) -> datetime:
        """Return the time in a reply to TIME; after a refusal, stop sending TIME."""
        if is_refusal(reply):
            self._time_query = ()
            return LATEST
        return time_of(reply)


class OneServer(Servers):
    """A single server; with Sentinel, the current primary."""

    def __init__(self, client: aioredis.Redis, max_connections: int, timeout: float) -> None:
        pool = client.connection_pool
        super().__init__(min(max_connections, pool.max_connections), timeout)
        self.database = int(pool.connection_kwargs.get("db") or 0)
        self._client = client
        self._wants_primary = bool(getattr(pool, "is_master", False))
        self._role_queries: tuple[Command, ...] = (HELLO,)

    async def ping(self) -> None:
        (reply,), _ = await with_connection(lambda: self._exchange(PING))
        unwrap(reply)

    async def _close(self) -> None:
        await self._client.aclose()

    async def _replies(self, requests: Sequence[Request]) -> Sequence[Any]:
        if requests[0].reads:
            return await self._read(requests)
        replies: list[Any] = []
        for request in requests:
            try:
                replies.append(await self.execute(self._send, request, repeatable=request.repeatable))
            except BackendError as error:
                replies.append(error)
        return replies

    async def _send(self, request: Request) -> Any:
        try:
            # Bypass the client: a user's client may retry, and a retried write can arrive late.
            (reply,) = await send_pipeline(self._client.connection_pool, [request.command()])
            request.check(reply)
        except (ResponseError, MaxConnectionsError):
            raise  # The server replied, or nothing was sent.
        except BaseException:
            request.lost()
            raise
        return reply

    async def _read(self, requests: Sequence[Request]) -> Sequence[Any]:
        try:
            replies, now = await self.execute(self._send_reads, requests, repeatable=True)
        except BackendError as error:
            return [error] * len(requests)
        return [translated(reply) if isinstance(reply, Exception) else (reply, now) for reply in replies]

    async def _send_reads(self, requests: Sequence[Request]) -> tuple[list[Any], datetime]:
        replies, now = await self._exchange(*(request.command() for request in requests))
        for request, reply in zip(requests, replies, strict=True):
            if not isinstance(reply, Exception):
                request.check(reply)
        return replies, now

    async def _exchange(self, *commands: Command) -> tuple[list[Any], datetime]:
        """Send reads in one round trip with queries for role and time; return the replies and the server time.

        Raises:
            NotInSync: The server is a replica out of sync, or a replica where the primary is required.
            Refused: It is of another kind, or a replica on which the user may not send INFO.
        """
        queries = self._role_queries
        replies = await send_pipeline(self._client.connection_pool, [*queries, *commands, *self._time_query])
        greeting = Greeting.of(replies[0])
        greeting.check_kind(Kind.SINGLE)
        if not greeting.is_primary and self._wants_primary:
            raise NotInSync("the server has become a replica")
        # For a replica, also check that it is in sync, from the next call on in the same round trip.
        self._role_queries = (HELLO,) if greeting.is_primary else (HELLO, REPLICATION)
        if not greeting.is_primary:
            if len(queries) == 1:
                return await self._exchange(*commands)
            greeting.check_in_sync(replies[1])
        now = self._parse_time(replies[-1]) if self._time_query else LATEST
        return replies[len(queries) : len(queries) + len(commands)], now

    async def nodes(self) -> Sequence[Any]:
        return [None]

    def layout(self) -> object:
        return None

    async def ask(self, node: Any, *command: Any) -> Any:
        return await self.execute(self._client.execute_command, *command, repeatable=True)

    async def time(self, node: Any) -> datetime:
        async def call() -> datetime:
            (reply,), _ = await self._exchange(TIME)
            return time_of(reply)

        return await self.execute(call, repeatable=True)

    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        commands = [("MGET", *keys)] if keys else []
        if scan is not None:
            commands += [RUN_ID_QUERY, scan]

        async def call() -> Page:
            replies, now = await self._exchange(*commands)
            records = checked_list(replies[0], len(keys)) if keys else ()
            return Page(records, [now] * len(keys), None if scan is None else scanned_by(*replies[-2:]))

        return await self.execute(call, repeatable=True)

    async def on_connection_lost(self, error: Exception) -> None:
        # A new connection may reach a new primary at the same address; and the cause may have
        # broken every connection.
        pool = self._client.connection_pool
        if isinstance(pool, Pool):
            pool.drop_idle()
        elif isinstance(error, (ReadOnlyError, NotInSync, OutOfStep, *PARSE_ERRORS)):
            await pool.disconnect(inuse_connections=False)
            if self._client.connection is not None:
                await self._client.connection.disconnect()

    def on_abandoned(self, waited: float) -> None:
        pool = self._client.connection_pool
        if waited >= self._timeout / 2 and isinstance(pool, Pool):
            pool.drop_idle()


async def send_pipeline(
    pool: aioredis.ConnectionPool, commands: Sequence[Command], returned: tuple[type[Exception], ...] = (ResponseError,)
) -> list[Any]:
    """Send commands in one pipeline; faster than the driver's own pipeline.

    Args:
        pool: The pool to take a connection from.
        commands: The commands.
        returned: Errors to return in place of a reply; any other error is raised.
    """
    connection: AbstractConnection = await cast("Any", pool).get_connection()
    try:
        packed: list[bytes] = []
        for command in commands:
            packed += connection.pack_command(*command)
        await connection.send_packed_command(packed)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except returned as error:
                replies.append(error)
        return replies
    finally:
        await pool.release(connection)


async def with_connection(call: Callable[[], Awaitable[T]]) -> T:
    """Await a call to the driver; retry while its pool is exhausted."""
    while True:
        try:
            return await call()
        except RedisConnectionError as error:
            if not lacks_connection(error):
                raise
            await asyncio.sleep(POOL_PAUSE)


def lacks_connection(error: Exception) -> bool:
    """Return whether the driver's pool was exhausted, so that nothing was sent."""
    return isinstance(error, MaxConnectionsError) or (
        isinstance(error, RedisConnectionError) and str(error) == _TOO_MANY
    )


def translated(answer: Any) -> Any:
    """Return a reply, with a driver's error translated into this library's."""
    if not isinstance(answer, Exception) or isinstance(answer, BackendError):
        return answer
    error = backend_error(answer, "Redis failed")
    error.__cause__ = answer
    return error

"""What a registry asks of Redis, and what of it may be sent twice; and how one server is asked, or a primary."""

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
    MISREAD,
    REPLICATION,
    TIME,
    Greeting,
    Kind,
    NotInSync,
    OutOfStep,
    answered,
    in_step,
    is_refusal,
    time_of,
)
from agentic.errors import BackendError, RegistryClosedError

T = TypeVar("T")

PATIENCE: Final = 0.8
"""For which part of `timeout` requests are sent again while their slot moves: some is left to say so."""

MOVING_PAUSE: Final = 0.01
"""Seconds between those tries."""

POOL_PAUSE: Final = 0.005
"""Seconds between tries to get a connection of a pool that others use as well."""

_TOO_MANY: Final = "Too many connections"
"""What the driver says of such a pool, up to 7.1 without an error class of its own."""


class Scanned(NamedTuple):
    """A step of a scan: by which run of which server, where it goes on (0 at its end), and the keys that it found."""

    server: bytes
    cursor: int
    keys: list[bytes]


class Page(NamedTuple):
    """What keys hold, None where it is not there or no string, the time of each one's server, and a step of a scan."""

    records: Sequence[bytes | None]
    times: Sequence[datetime]
    scanned: Scanned | None


# As bytes, so that the driver gives the answer as it is: it would read all of it, for one line.
WHO_ARE_YOU: Final = (b"INFO", b"server")
PING: Final = (b"PING",)

BROKEN: Final = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, ClusterDownError, *MISREAD)
"""Errors after which another server, or a new connection, may do."""


def scanned_by(info: Any, found: Any) -> Scanned:
    """Return the step that a server's answers to `WHO_ARE_YOU` and to a `SCAN` make; raises the error of the latter."""
    run = re.search(rb"run_id:(\w+)", info) if isinstance(info, bytes) else None  # Not every user may ask for it.
    cursor, keys = in_step(found, 2)
    return Scanned(run[1] if run else b"", int(cursor), keys)


class Servers(ABC):
    """What a registry asks of Redis; each call is bounded by the caller's deadline.

    A call that may be repeated is tried twice when its connection broke; every other one once.

    Attributes:
        database: The number of the database.
    """

    database = 0

    def __init__(self, max_connections: int, timeout: float) -> None:
        self._timeout = timeout
        # The driver's own pool that waits has been seen to leave a caller waiting beside free connections.
        self._free_connections = asyncio.Semaphore(max_connections)
        self._time_question: tuple[Command, ...] = (TIME,)
        self._closed = False

    @abstractmethod
    async def ping(self) -> None:
        """Connect, and check the servers; raises the driver's own errors."""

    async def aclose(self) -> None:
        """Close every connection; what is still under way fails, and makes no new one."""
        self._closed = True
        await self._close()

    @abstractmethod
    async def _close(self) -> None: ...

    async def run(self, requests: Sequence[Request]) -> None:
        """Send requests until each of their keys has its outcome, which may be its error."""
        until = monotonic() + PATIENCE * self._timeout
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
        """Send each request once; return each one's reply, or its error. The reply of one that reads is timed."""

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
    async def time(self, node: Any) -> datetime:
        """Return the time of one of the nodes, if it is in sync."""

    @abstractmethod
    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        """Return the records of a scan's last keys, and take its next step, side by side."""

    @abstractmethod
    async def broken(self, error: Exception) -> None:
        """Make the next try reach another server, or the same one anew, after an error that asks for that."""

    def given_up(self, waited: float) -> None:  # noqa: B027  not every kind needs it
        """Take note that a call was cancelled after so many seconds, perhaps since its server hangs."""

    async def execute(self, call: Callable[..., Awaitable[T]], *args: Any, repeatable: bool) -> T:
        """Await a call to the driver while one of its connections is free; raise this library's errors for its own.

        Args:
            call: The call.
            *args: Its arguments.
            repeatable: Call again, once, when the connection broke.
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
                    except BROKEN as error:
                        if lacks_connection(error):
                            await asyncio.sleep(POOL_PAUSE)
                        elif is_repeated:
                            raise
                        else:
                            await self._recover(error, repeatable)
                            is_repeated = True
        except asyncio.CancelledError:
            self.given_up(monotonic() - began)
            raise
        except DRIVER_ERRORS as error:
            raise backend_error(error, "Redis failed") from brief(error)

    async def _recover(self, error: Exception, repeatable: bool) -> None:
        """Prepare for calls after a connection broke; raise the error where this one is not to be repeated."""
        if isinstance(error, AuthenticationError):
            raise error
        if self._closed:
            raise RegistryClosedError from error
        await self.broken(error)
        if not repeatable or not isinstance(error, RedisConnectionError):
            raise error

    def _time_in(self, reply: Any) -> datetime:
        """Return the time of an answer to TIME; a user who may not ask is not asked again."""
        if is_refusal(reply):
            self._time_question = ()
            return LATEST
        return time_of(reply)


class OneServer(Servers):
    """One server and its replicas; with Sentinel, whichever of them is the primary."""

    def __init__(self, client: aioredis.Redis, max_connections: int, timeout: float) -> None:
        pool = client.connection_pool
        super().__init__(min(max_connections, pool.max_connections), timeout)
        self.database = int(pool.connection_kwargs.get("db") or 0)
        self._client = client
        self._wants_primary = bool(getattr(pool, "is_master", False))
        self._role_questions: tuple[Command, ...] = (HELLO,)

    async def ping(self) -> None:
        (reply,), _ = await with_connection(lambda: self._exchange(PING))
        answered(reply)

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
            # Not by the client: one of the user's own would repeat it, and a repeated write comes late.
            (reply,) = await piped(self._client.connection_pool, [request.command()])
            request.check(reply)
        except (ResponseError, MaxConnectionsError):
            raise  # An answer; or nothing was sent.
        except BaseException:
            request.lost()
            raise
        return reply

    async def _read(self, requests: Sequence[Request]) -> Sequence[Any]:
        try:
            replies, now = await self.execute(self._send_reads, requests, repeatable=True)
        except BackendError as error:
            return [error] * len(requests)
        return [mapped(reply) if isinstance(reply, Exception) else (reply, now) for reply in replies]

    async def _send_reads(self, requests: Sequence[Request]) -> tuple[list[Any], datetime]:
        replies, now = await self._exchange(*(request.command() for request in requests))
        for request, reply in zip(requests, replies, strict=True):
            if not isinstance(reply, Exception):
                request.check(reply)
        return replies, now

    async def _exchange(self, *commands: Command) -> tuple[list[Any], datetime]:
        """Send reads in one round trip with what tells whether their answers count; return those, and the time.

        Raises:
            NotInSync: The server is a replica that does not follow its primary, or the primary was wanted.
            Refused: It is of another kind, or a replica that may not be asked.
        """
        questions = self._role_questions
        replies = await piped(self._client.connection_pool, [*questions, *commands, *self._time_question])
        greeting = Greeting.of(replies[0])
        greeting.check_kind(Kind.SINGLE)
        if not greeting.is_primary and self._wants_primary:
            raise NotInSync("the server has become a replica")
        # Of a replica it is asked as well whether it is in sync, from now on in the same round trip.
        self._role_questions = (HELLO,) if greeting.is_primary else (HELLO, REPLICATION)
        if not greeting.is_primary:
            if len(questions) == 1:
                return await self._exchange(*commands)
            greeting.check_in_sync(replies[1])
        now = self._time_in(replies[-1]) if self._time_question else LATEST
        return replies[len(questions) : len(questions) + len(commands)], now

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
            commands += [WHO_ARE_YOU, scan]

        async def call() -> Page:
            replies, now = await self._exchange(*commands)
            records = in_step(replies[0], len(keys)) if keys else ()
            return Page(records, [now] * len(keys), None if scan is None else scanned_by(*replies[-2:]))

        return await self.execute(call, repeatable=True)

    async def broken(self, error: Exception) -> None:
        # New connections may find the new primary behind the same name; and what broke one may have broken all.
        pool = self._client.connection_pool
        if isinstance(pool, Pool):
            pool.drop_idle()
        elif isinstance(error, (ReadOnlyError, NotInSync, OutOfStep, *MISREAD)):
            await pool.disconnect(inuse_connections=False)
            if self._client.connection is not None:
                await self._client.connection.disconnect()

    def given_up(self, waited: float) -> None:
        pool = self._client.connection_pool
        if waited >= self._timeout / 2 and isinstance(pool, Pool):
            pool.drop_idle()


async def piped(
    pool: aioredis.ConnectionPool, commands: Sequence[Command], returned: tuple[type[Exception], ...] = (ResponseError,)
) -> list[Any]:
    """Send commands in one go, as a pipeline of the driver does but with less about it.

    Args:
        pool: Where a connection is taken from.
        commands: The commands.
        returned: Errors that are returned in place of a reply; any other one is raised.
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
    """Await a call to the driver, again while its pool has no connection left."""
    while True:
        try:
            return await call()
        except RedisConnectionError as error:
            if not lacks_connection(error):
                raise
            await asyncio.sleep(POOL_PAUSE)


def lacks_connection(error: Exception) -> bool:
    """Return whether the driver's pool had no connection left, so that nothing was sent."""
    return isinstance(error, MaxConnectionsError) or (
        isinstance(error, RedisConnectionError) and str(error) == _TOO_MANY
    )


def mapped(answer: Any) -> Any:
    """Return an answer, or the error of this library that stands for the driver's."""
    if not isinstance(answer, Exception) or isinstance(answer, BackendError):
        return answer
    error = backend_error(answer, "Redis failed")
    error.__cause__ = answer
    return error

"""Connections to Redis that pack commands in C, check the server's kind, detect dead sockets and close at once."""

from __future__ import annotations

import asyncio
import select
from typing import Any, ClassVar, cast

import hiredis
import redis.asyncio as aioredis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection, SentinelManagedSSLConnection

from agentic.backends.redis.server_info import Greeting, Kind, NotInSync


class _Checked(AbstractConnection):
    """Behaviour that all connections of this library add to the driver's."""

    kind: ClassVar[Kind] = Kind.SINGLE
    """The expected kind of server; connecting to another kind fails."""

    _greeting: Greeting | None = None

    def __init__(self, **options: Any) -> None:
        cast("Any", super()).__init__(**options)
        # Stop the driver from sending its name and version, which servers before Redis 7.2 reject. Which attributes it
        # reads depends on its release.
        self.lib_name = self.lib_version = self.driver_info = None

    def pack_command(self, *args: Any) -> list[bytes]:
        # With hiredis, like the driver's blocking connections; its asyncio connections pack in Python.
        name, *rest = args
        # The driver passes a name of several words, such as "CLIENT SETNAME", as one string.
        words = name.encode().split() if isinstance(name, str) else name.split()
        return [hiredis.pack_command(cast("Any", (*words, *rest)))]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Run the driver's handshake, then check the kind and role that the server reported."""
        self._greeting = None
        await super().on_connect_check_health(check_health)
        if self._greeting is not None:
            self.check(self._greeting)

    def check(self, greeting: Greeting) -> None:
        """Raise if the server is of another kind than expected."""
        greeting.check_kind(self.kind)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        response = await super().read_response(*args, **kwargs)
        if self._greeting is None:
            self._greeting = Greeting.of(response)  # The first reply on a connection is that to HELLO.
        return response

    async def connect(self) -> None:
        if self.should_reconnect():
            await self.disconnect(nowait=True)
        await cast("Any", super()).connect()

    def should_reconnect(self) -> bool:
        """Return whether the peer has closed or reset the idle connection, so that a command would be lost."""
        if cast("Any", super()).should_reconnect():
            return True
        reader, writer = self._reader, self._writer
        if reader is None or writer is None:
            return False
        if reader.at_eof() or reader.exception() is not None or writer.transport.is_closing():
            return True
        if not hasattr(select, "poll"):
            return False
        # After a blocked event loop, asyncio has not yet processed a close that the socket has received.
        poll = select.poll()
        poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def drop(self) -> None:
        """Close the connection at once and discard unsent data."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        self.drop()  # The driver would wait for a hung server, or for its TLS close.
        await super().disconnect(*args, **kwargs)


class Connection(_Checked, aioredis.Connection):
    """A connection to a single server."""


class TLSConnection(_Checked, aioredis.SSLConnection):
    """A TLS connection to a single server."""


class UnixConnection(_Checked, aioredis.UnixDomainSocketConnection):
    """A connection to a single server by a Unix socket."""

    async def _connect(self) -> None:
        # The driver's version runs the handshake here and again afterwards, and reports a rejection as an outage.
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await asyncio.open_unix_connection(self.path)


class ClusterConnection(_Checked, aioredis.Connection):
    """A connection to a node of a cluster."""

    kind = Kind.CLUSTER


class ClusterTLSConnection(_Checked, aioredis.SSLConnection):
    """A TLS connection to a node of a cluster."""

    kind = Kind.CLUSTER


class SentinelConnection(_Checked, aioredis.Connection):
    """A connection to a sentinel."""

    kind = Kind.SENTINEL


class SentinelTLSConnection(_Checked, aioredis.SSLConnection):
    """A TLS connection to a sentinel."""

    kind = Kind.SENTINEL


class _ToPrimary(_Checked):
    def check(self, greeting: Greeting) -> None:
        super().check(greeting)
        if not greeting.is_primary:
            raise NotInSync("the server that the sentinels name is a replica")


class PrimaryConnection(_ToPrimary, SentinelManagedConnection):
    """A connection to the primary that the sentinels name."""


class PrimaryTLSConnection(_ToPrimary, SentinelManagedSSLConnection):
    """A TLS connection to the primary that the sentinels name."""


class Pool(aioredis.ConnectionPool):
    """A pool of connections to one server, or to the primary, whose idle connections can be dropped."""

    if not hasattr(AbstractConnection, "reset_should_reconnect"):

        async def get_connection(self, *args: Any, **options: Any) -> Any:
            """Take a connection without the pool's lock, with which one hung connect blocks all up to redis-py 7.1."""
            connection = cast("Any", super()).get_available_connection()
            try:
                await self.ensure_connection(connection)
            except BaseException:
                await self.release(connection)
                raise
            return connection

    def drop_idle(self) -> None:
        """Close the idle connections; each reconnects when it is next taken from the pool."""
        for connection in self._available_connections:
            if isinstance(connection, _Checked):
                connection.drop()


class PrimaryPool(Pool, SentinelConnectionPool):
    """A pool of connections to the primary that the sentinels name."""

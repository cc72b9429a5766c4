"""Connections to Redis: commands packed in C, the server's kind checked, dead ones noticed, none closed slowly."""

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
    """What all connections of this library share, over the driver's own."""

    kind: ClassVar[Kind] = Kind.SINGLE
    """The kind of server that it is meant for; another one is refused when the connection is made."""

    _greeting: Greeting | None = None

    def __init__(self, **options: Any) -> None:
        cast("Any", super()).__init__(**options)
        # What the driver would tell the server of itself, by the name it has in 7.1 and since: servers before Redis 7.2
        # answer it with errors.
        self.lib_name = self.lib_version = self.driver_info = None

    def pack_command(self, *args: Any) -> list[bytes]:
        # With hiredis, as the driver's blocking connections do it; its asyncio ones do it in Python.
        name, *rest = args
        # The driver gives names of several words, such as "CLIENT SETNAME", as one.
        words = name.encode().split() if isinstance(name, str) else name.split()
        return [hiredis.pack_command(cast("Any", (*words, *rest)))]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """Greet the server, as the driver does it, and check what it says of itself."""
        self._greeting = None
        await super().on_connect_check_health(check_health)
        if self._greeting is not None:
            self.check(self._greeting)

    def check(self, greeting: Greeting) -> None:
        """Raise where the server is not of the kind that the connection is meant for."""
        greeting.check_kind(self.kind)

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        response = await super().read_response(*args, **kwargs)
        if self._greeting is None:
            self._greeting = Greeting.of(response)  # The first answer on a connection is that to HELLO.
        return response

    async def connect(self) -> None:
        if self.should_reconnect():
            await self.disconnect(nowait=True)
        await cast("Any", super()).connect()

    def should_reconnect(self) -> bool:
        """Tell whether what is sent would be lost: the other side has closed or reset the idle connection."""
        if cast("Any", super()).should_reconnect():
            return True
        reader, writer = self._reader, self._writer
        if reader is None or writer is None:
            return False
        if reader.at_eof() or reader.exception() is not None or writer.transport.is_closing():
            return True
        if not hasattr(select, "poll"):
            return False
        # An event loop that was blocked has not seen yet what the network brought.
        poll = select.poll()
        poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def drop(self) -> None:
        """Close it at once; what was not sent yet never leaves."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        self.drop()  # The driver would wait for a server that hangs, or for its side of the end of TLS.
        await super().disconnect(*args, **kwargs)


class Connection(_Checked, aioredis.Connection):
    """To a single server."""


class TLSConnection(_Checked, aioredis.SSLConnection):
    """To a single server, by TLS."""


class UnixConnection(_Checked, aioredis.UnixDomainSocketConnection):
    """To a single server of this host."""

    async def _connect(self) -> None:
        # The driver's own greets the server here and once more afterwards, and takes what is refused for an outage.
        async with asyncio.timeout(self.socket_connect_timeout):
            self._reader, self._writer = await asyncio.open_unix_connection(self.path)


class ClusterConnection(_Checked, aioredis.Connection):
    """To a node of a cluster."""

    kind = Kind.CLUSTER


class ClusterTLSConnection(_Checked, aioredis.SSLConnection):
    """To a node of a cluster, by TLS."""

    kind = Kind.CLUSTER


class SentinelConnection(_Checked, aioredis.Connection):
    """To a sentinel."""

    kind = Kind.SENTINEL


class SentinelTLSConnection(_Checked, aioredis.SSLConnection):
    """To a sentinel, by TLS."""

    kind = Kind.SENTINEL


class _ToPrimary(_Checked):
    def check(self, greeting: Greeting) -> None:
        super().check(greeting)
        if not greeting.is_primary:
            raise NotInSync("the server that the sentinels name is a replica")


class PrimaryConnection(_ToPrimary, SentinelManagedConnection):
    """To the primary that sentinels name."""


class PrimaryTLSConnection(_ToPrimary, SentinelManagedSSLConnection):
    """To the primary that sentinels name, by TLS."""


class Pool(aioredis.ConnectionPool):
    """Connections to one server, or to the primary; idle ones can be dropped."""

    if not hasattr(AbstractConnection, "reset_should_reconnect"):

        async def get_connection(self, *args: Any, **options: Any) -> Any:
            """Take a connection; up to 7.1 the driver makes one at a time, so a server that hangs holds up all."""
            connection = cast("Any", super()).get_available_connection()
            try:
                await self.ensure_connection(connection)
            except BaseException:
                await self.release(connection)
                raise
            return connection

    def drop_idle(self) -> None:
        """Close the idle connections before anybody takes one of them again: each is made anew when it is needed."""
        for connection in self._available_connections:
            if isinstance(connection, _Checked):
                connection.drop()


class PrimaryPool(Pool, SentinelConnectionPool):
    """Connections to the primary that sentinels name."""

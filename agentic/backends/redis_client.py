"""The driver's client, set up: a pool of its own, no retries, commands packed in C."""

from __future__ import annotations

from typing import Any, Final, cast

import hiredis
import redis.asyncio as aioredis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

CONNECT_TIMEOUT: Final = 5.0


class _PackedInC(AbstractConnection):
    """Packs commands with hiredis, as the driver's blocking connections do; its asyncio ones do it in Python."""

    def pack_command(self, *args: Any) -> list[bytes]:
        name, *rest = args
        # The driver gives names of several words, such as "CLIENT SETNAME", as one.
        words = name.encode().split() if isinstance(name, str) else name.split()
        return [hiredis.pack_command(cast("Any", (*words, *rest)))]


class _Connection(_PackedInC, aioredis.Connection):
    pass


class _SSLConnection(_PackedInC, aioredis.SSLConnection):
    pass


class _UnixConnection(_PackedInC, aioredis.UnixDomainSocketConnection):
    pass


def make_client(options: dict[str, Any], timeout: float) -> aioredis.Redis:
    """Return a client with a pool of its own and none of the driver's retries, which would repeat writes.

    Args:
        options: What `connection_options` made of a URL, and `max_connections`.
        timeout: Seconds to wait for a free connection.
    """
    options = dict(options)
    if options.pop("ssl", False):
        connection_class: type[AbstractConnection] = _SSLConnection
    else:
        connection_class = _UnixConnection if "path" in options else _Connection
    return aioredis.Redis.from_pool(
        aioredis.BlockingConnectionPool(
            connection_class=connection_class,
            timeout=timeout,
            # Deadlines are set for each call; a second timer on each read costs a fifth of the driver's speed.
            socket_timeout=None,
            socket_connect_timeout=min(CONNECT_TIMEOUT, timeout),
            retry=Retry(NoBackoff(), 0),
            # Both would greet each new connection with commands that older servers answer with errors.
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            **options,
        )
    )

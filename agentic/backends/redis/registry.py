"""The registry in Redis or Valkey. Its options are checked before it connects."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Self
from uuid import uuid4

import redis.asyncio as aioredis

from agentic.backends.redis.backend import DEFAULT_PREFIX, RedisBackend
from agentic.backends.redis.client import check_client
from agentic.backends.redis.url import connection_options, options_in
from agentic.options import count
from agentic.registry import AgentRegistry
from agentic.urls import StoreURL, with_parameter


class RedisRegistry(AgentRegistry):
    """A registry in Redis 6.2 or later, or Valkey. The key `{prefix}:agent:{id}` stores an agent's JSON and expires.

    Every change is one script, atomic in the server and timed by the server's clock. `list`, `scan`, `reap` and `flush`
    fetch one page's records and the next page's keys in one round trip. They remember the ids they have seen, because
    the server may return a key twice.

    Attributes:
        url: The URL with its password replaced by `***`; None if a client was passed.
        prefix: The beginning of every key.
        max_connections: The limit on connections.
    """

    backend: RedisBackend
    _logger = logging.getLogger("agentic.redis")

    def __init__(
        self,
        url: str | StoreURL = "redis://localhost:6379/0",
        *,
        client: aioredis.Redis | aioredis.RedisCluster | None = None,
        password: str | None = None,
        db: int | None = None,
        prefix: str = DEFAULT_PREFIX,
        ttl: float | timedelta | None = 300.0,
        timeout: float | timedelta = 5.0,
        stale_after: float | timedelta = 30.0,
        wait: float | timedelta = 0.0,
        max_connections: int = 16,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        sentinel_tls: bool | None = None,
    ) -> None:
        """Check the options; no I/O.

        Args:
            url: `redis[s]://`, `valkey[s]://`, `unix://`, `redis[s]+sentinel://` or `redis[s]+cluster://`. Its query
                parameters may be `ca`, `cert`, `key`, `sentinel_username`, `sentinel_password`, `sentinel_tls`, and
                `db` for a Unix socket.
            client: An existing client, used instead of `url` and left open; its retries never repeat a write.
                Connection options must be set on it, and are refused here.
            password: Overrides the URL's password.
            db: Overrides the URL's database; a cluster has only database 0.
            prefix: Separates several registries in one database.
            ttl: Seconds, to the millisecond, after its last registration or heartbeat at which an agent is **gone**;
                None keeps it.
            timeout: Seconds a call may take, waiting for a free connection included.
            stale_after: Seconds of silence after which a reaper marks an agent **offline**, by default.
            wait: Seconds for which opening is retried while the store is unavailable.
            max_connections: Limit on connections; further calls wait for a free one.
            ca: With TLS, a file of certificates to trust instead of the system's.
            cert: With TLS, the client's certificate, and its key unless `key` is given.
            key: With TLS, the key of `cert`.
            sentinel_username: The user name for the sentinels.
            sentinel_password: The password for the sentinels.
            sentinel_tls: Whether to connect to the sentinels with TLS.

        Raises:
            ConfigurationError: An option is wrong.
        """
        connection = {
            "password": password,
            "db": db,
            "ca": ca,
            "cert": cert,
            "key": key,
            "sentinel_username": sentinel_username,
            "sentinel_password": sentinel_password,
            "sentinel_tls": sentinel_tls,
        }
        self.max_connections = count(max_connections, "max_connections")
        self.url: str | None = None
        if client is None:
            parts = StoreURL.parse(url)
            self.url = str(parts)
            options = connection_options(parts, **connection) | {"max_connections": self.max_connections}
        else:
            check_client(client, connection)
            options = {}
        backend = RedisBackend(
            client or options,
            name=with_parameter(self.url or "redis://", "db", db) if db else self.url or "redis://",
            prefix=prefix,
            ttl=ttl,
            timeout=timeout,
            max_connections=self.max_connections,
        )
        super().__init__(backend, stale_after=stale_after, wait=wait)
        self.prefix = backend.prefix

    @classmethod
    def options_in(cls, url: StoreURL) -> dict[str, Any]:
        """Return the URL of the servers, and None for `password` and `db` if the URL has them."""
        return options_in(url)

    @classmethod
    @contextmanager
    def scratch(cls, **options: Any) -> Iterator[Self]:
        """Make a registry with a unique prefix."""
        options["prefix"] = f"{options.get('prefix') or DEFAULT_PREFIX}:demo-{uuid4().hex[:8]}"
        yield cls(**options)

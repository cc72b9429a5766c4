"""The registry in Redis or Valkey: its options, checked before anything connects."""

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
    """A registry in Redis 6.2 or later, or Valkey: the key `{prefix}:agent:{id}` holds an agent's JSON and expires.

    Every change is one script, atomic in the server and on the server's clock. `list`, `scan`, `reap` and `flush` ask
    for one page's records and the next page's keys in one round trip; they keep the ids they have seen, since the
    server may repeat a key.

    Attributes:
        url: The URL, its password replaced by `***`; None where a client was passed.
        prefix: What every key begins with.
        max_connections: As given.
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
            url: `redis[s]://`, `valkey[s]://`, `unix://`, `redis[s]+sentinel://` or `redis[s]+cluster://`; of the
                options below it may hold `ca`, `cert`, `key`, `sentinel_username`, `sentinel_password`, `sentinel_tls`,
                and `db` for a Unix socket, as query parameters.
            client: A client of your own, used in place of `url` and left open; its retries repeat no write. Options of
                the connection belong to it, and are refused here.
            password: Overrides the URL's.
            db: Overrides the URL's; a cluster has none but 0.
            prefix: Keeps several registries apart in one database.
            ttl: Seconds, to the millisecond, after its last registration or heartbeat at which an agent is **gone**;
                None keeps it.
            timeout: Seconds a call may take, waiting for a free connection included.
            stale_after: Seconds of silence after which a reaper marks an agent **offline**, by default.
            wait: Seconds for which opening tries again while the store is unavailable.
            max_connections: Connections at most; further calls wait for one.
            ca: With TLS, a file of certificates to trust in place of the system's.
            cert: With TLS, the client's certificate, and its key where `key` is not given.
            key: With TLS, the key of `cert`.
            sentinel_username: The user with whom sentinels are asked.
            sentinel_password: The password with which sentinels are asked.
            sentinel_tls: Whether sentinels are asked with TLS.

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
        """Return the URL of the servers, and None for `password` and `db` where the URL has them."""
        return options_in(url)

    @classmethod
    @contextmanager
    def scratch(cls, **options: Any) -> Iterator[Self]:
        """Make a registry under a prefix of its own."""
        options["prefix"] = f"{options.get('prefix') or DEFAULT_PREFIX}:demo-{uuid4().hex[:8]}"
        yield cls(**options)

"""The slot map of a cluster, as its nodes report it, and a client for each node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import random
from typing import Any, Final, cast

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from agentic.backends.redis.connection import Pool
from agentic.backends.redis.keys import SLOTS
from agentic.backends.redis.server_info import DRIVER_ERRORS, PARSE_ERRORS, OutOfStep

Address = tuple[str, int]

_NOT_CONNECTION_OPTIONS: Final = ("response_callbacks", "oss_cluster_maint_notifications_handler")
"""Entries of the driver's connection options that no connection accepts."""


class Topology:
    """The nodes of a cluster and their slots, read from any node that answers.

    Replaces the driver's own, which reconnects everywhere whenever it reads the slots; a scan reads them twice.
    redis-py 7.1 also closes connections in use; 7.2 to 7.4 never close the connections of replaced nodes.

    Attributes:
        max_connections: Limit of connections to each node.
    """

    def __init__(
        self,
        seeds: Iterable[Address],
        options: Mapping[str, Any],
        remap: Callable[[str, int], Address] = lambda host, port: (host, port),
    ) -> None:
        """Create a topology; send nothing yet.

        Args:
            seeds: The initial nodes.
            options: Options of each node's pool: `max_connections`, `connection_class` and connection options.
            remap: Maps an address reported by a node to the one to connect to.
        """
        self._seeds = tuple(seeds)
        self._options = options
        self._remap = remap
        self._clients: dict[Address, aioredis.Redis] = {}
        self._known = set(self._seeds)
        self._failed = set[Address]()
        self._primaries: list[Address | None] = [None] * SLOTS
        self.max_connections: int = options["max_connections"]

    @classmethod
    def of_client(cls, client: aioredis.RedisCluster) -> Topology:
        """Return the topology of a user's cluster client, with the same connection options."""
        options = {
            name: value for name, value in client.connection_kwargs.items() if name not in _NOT_CONNECTION_OPTIONS
        }
        options["retry"] = Retry(NoBackoff(), 0)
        nodes = client.nodes_manager
        seeds = [(node.host, int(node.port)) for node in nodes.startup_nodes.values()]
        return cls(seeds, options, nodes.remap_host_port)

    def primaries(self) -> Sequence[Address | None]:
        """Return the primary of each slot; None if unknown."""
        return tuple(self._primaries)

    def primary(self, slot: int) -> Address | None:
        """Return the primary of a slot; None if unknown."""
        return self._primaries[slot]

    def client(self, address: Address) -> Any:
        """Return the client for a node, also for one without slots."""
        client = self._clients.get(address)
        if client is None:
            host, port = address
            client = aioredis.Redis.from_pool(Pool(host=host, port=port, **self._options))
            self._clients[address] = client
        return client

    def redirected(self, asked: Address, answer: AskError) -> Address:
        """Return the target of a redirect; store it as the slot's primary if the redirect is permanent (MOVED)."""
        address = self._address(asked, *answer.node_addr)
        if isinstance(answer, MovedError):
            self._primaries[answer.slot_id] = address
        return address

    async def read(self) -> None:
        """Read the slot map from the first node that answers; nodes that failed before are tried last.

        Raises:
            Exception: The driver's error: a node's refusal if there is one, else the last error.
            ClusterDownError: Some slots have no primary.
        """
        errors = list[Exception]()
        # In random order, to spread clients over the nodes.
        for address in sorted({*self._known, *self._seeds}, key=lambda each: (each in self._failed, random())):
            try:
                found = await self.client(address).execute_command(b"CLUSTER", b"SLOTS")
                self._apply(address, found)
            except DRIVER_ERRORS as error:
                self._failed.add(address)
                errors.append(error)
            else:
                self._failed.discard(address)
                return
        raise next((each for each in errors if isinstance(each, ResponseError)), errors[-1])

    def _apply(self, asked: Address, found: Any) -> None:
        """Apply a node's reply to CLUSTER SLOTS: ranges of slots, each with a primary and its replicas."""
        primaries: list[Address | None] = [None] * SLOTS
        known = set[Address]()
        try:
            for first, last, *nodes in found:
                addresses = [self._address(asked, (host or b"").decode(), port) for host, port, *_ in nodes]
                primaries[first : last + 1] = [addresses[0]] * (last + 1 - first)
                known.update(addresses)
        except PARSE_ERRORS as error:
            raise OutOfStep("the reply to CLUSTER SLOTS has an unexpected form") from error
        if None in primaries:
            raise ClusterDownError("some slots have no primary at present")
        self._primaries, self._known = primaries, known
        for address in self._clients.keys() - known:
            self._pool(address).drop_idle()

    def _address(self, asked: Address, host: str, port: int) -> Address:
        # A node omits the host if clients should use the one through which they reached it.
        return self._remap(host or asked[0], port)

    def drop_idle(self) -> None:
        """Close the idle connections to all nodes."""
        for address in self._clients:
            self._pool(address).drop_idle()

    def _pool(self, address: Address) -> Pool:
        return cast("Pool", self._clients[address].connection_pool)

    async def aclose(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

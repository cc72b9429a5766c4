"""Which node of a cluster holds which slot, as the nodes tell, and a client of each node."""

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
from agentic.backends.redis.server_info import DRIVER_ERRORS, MISREAD, OutOfStep

Address = tuple[str, int]

_NOT_OF_A_CONNECTION: Final = ("response_callbacks", "oss_cluster_maint_notifications_handler")
"""What the driver keeps among the options of connections although no connection takes it."""


class Topology:
    """The nodes of a cluster and their slots, read from any node that answers.

    Replaces the driver's own, which makes every connection anew whenever it reads the slots, twice in a walk of the
    fleet. redis-py 7.1 also closes connections in use; 7.2 to 7.4 never close those of the nodes that they replace.

    Attributes:
        max_connections: To each node.
    """

    def __init__(
        self,
        seeds: Iterable[Address],
        options: Mapping[str, Any],
        remap: Callable[[str, int], Address] = lambda host, port: (host, port),
    ) -> None:
        """Make ready to ask for the slots.

        Args:
            seeds: The nodes to ask first.
            options: Options of each node's pool: `max_connections`, `connection_class` and those of a connection.
            remap: Returns the address to use for one that a node tells.
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
        """Return the topology of a user's cluster, with connections like those of the user's client."""
        options = {name: value for name, value in client.connection_kwargs.items() if name not in _NOT_OF_A_CONNECTION}
        options["retry"] = Retry(NoBackoff(), 0)
        nodes = client.nodes_manager
        seeds = [(node.host, int(node.port)) for node in nodes.startup_nodes.values()]
        return cls(seeds, options, nodes.remap_host_port)

    def primaries(self) -> Sequence[Address | None]:
        """Return the primary of each slot, None where it is not known."""
        return tuple(self._primaries)

    def primary(self, slot: int) -> Address | None:
        """Return the primary of a slot, None where it is not known."""
        return self._primaries[slot]

    def client(self, address: Address) -> Any:
        """Return the client of a node, which may be one that holds no slots."""
        client = self._clients.get(address)
        if client is None:
            host, port = address
            client = aioredis.Redis.from_pool(Pool(host=host, port=port, **self._options))
            self._clients[address] = client
        return client

    def referred(self, asked: Address, answer: AskError) -> Address:
        """Return the node that another one has named, and remember it where a slot has moved there for good."""
        address = self._address(asked, *answer.node_addr)
        if isinstance(answer, MovedError):
            self._primaries[answer.slot_id] = address
        return address

    async def read(self) -> None:
        """Ask one node after another for the slots, those that have failed last of all.

        Raises:
            Exception: The driver's: a node's refusal, or else the last error.
            ClusterDownError: Some slots have no primary.
        """
        errors = list[Exception]()
        # In random order, so that not every client asks the same node.
        for address in sorted({*self._known, *self._seeds}, key=lambda each: (each in self._failed, random())):
            try:
                found = await self.client(address).execute_command(b"CLUSTER", b"SLOTS")
                self._take(address, found)
            except DRIVER_ERRORS as error:
                self._failed.add(address)
                errors.append(error)
            else:
                self._failed.discard(address)
                return
        raise next((each for each in errors if isinstance(each, ResponseError)), errors[-1])

    def _take(self, asked: Address, found: Any) -> None:
        """Take over what a node tells: ranges of slots, each with its primary and its replicas."""
        primaries: list[Address | None] = [None] * SLOTS
        known = set[Address]()
        try:
            for first, last, *nodes in found:
                addresses = [self._address(asked, (host or b"").decode(), port) for host, port, *_ in nodes]
                primaries[first : last + 1] = [addresses[0]] * (last + 1 - first)
                known.update(addresses)
        except MISREAD as error:
            raise OutOfStep("the answer to CLUSTER SLOTS is of another form") from error
        if None in primaries:
            raise ClusterDownError("some slots have no primary at present")
        self._primaries, self._known = primaries, known
        for address in self._clients.keys() - known:
            self._pool(address).drop_idle()

    def _address(self, asked: Address, host: str, port: int) -> Address:
        # A node leaves out the host where it is its own, or where its clients are to use the one that they know.
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

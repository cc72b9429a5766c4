"""Redis Cluster: keys of one slot go together, and every primary gets its part side by side."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.cluster import PRIMARY
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisClusterException, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agentic.backends.redis_client import DRIVER_ERRORS
from agentic.backends.redis_keys import by_family
from agentic.backends.redis_operations import Read
from agentic.backends.redis_requests import Batch, Command, Request, requests, under_way
from agentic.backends.redis_server_info import LATEST, TIME, NotInSync, answered, time_of
from agentic.backends.redis_servers import PING, WHO_ARE_YOU, Page, Scanned, Servers, mapped, scanned_by
from agentic.errors import BackendError

ASKING: Final = ("ASKING",)
BROKEN: Final = (RedisConnectionError, RedisTimeoutError)


class Cluster(Servers):
    """Redis Cluster: what concerns keys of one slot is one command, and each primary gets its commands in one go.

    A primary that fails fails its own agents alone; a walk of the fleet fails with any of them.
    """

    def __init__(
        self, client: aioredis.RedisCluster, max_connections: int, timeout: float, probes: Sequence[bytes]
    ) -> None:
        """Make ready to ask a cluster.

        Args:
            client: The driver's.
            max_connections: As of `Servers`.
            timeout: As of `Servers`.
            probes: A key of each family: a primary that answers for them holds their slots, and is up.
        """
        super().__init__(min(max_connections, client.connection_kwargs["max_connections"]), timeout)
        self._client = client
        self._probes = probes
        self._changes = 0
        self._looking: asyncio.Task[None] | None = None

    async def ping(self) -> None:
        await self._client.initialize()
        for replies in await asyncio.gather(*(self._exchange(node, PING) for node in self._primaries())):
            answered(*replies)

    async def _close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._client.aclose()
        # The driver leaves open what it had when it was cancelled while it found out where the slots are.
        nodes = self._client.nodes_manager
        for node in (*nodes.startup_nodes.values(), *nodes.nodes_cache.values()):
            await node.disconnect()

    async def nodes(self) -> Sequence[Any]:
        async def call() -> list[ClusterNode]:
            await self._client.initialize()
            await self._client.nodes_manager.initialize()
            return self._primaries()

        return await self.driven(call, repeatable=True)

    def _primaries(self) -> list[ClusterNode]:
        """Return the nodes that hold a family, as far as is known."""
        nodes = {self._client.nodes_manager.get_node_from_slot(key_slot(probe)) for probe in self._probes}
        return sorted(nodes, key=lambda node: str(node.name))

    def layout(self) -> object:
        slots = {slot: nodes[0].name for slot, nodes in self._client.nodes_manager.slots_cache.items()}
        return self._changes, slots

    async def ask(self, node: Any, *command: Any) -> Any:
        return await self.driven(lambda: node.execute_command(*command), repeatable=True)

    async def time(self, node: Any) -> datetime:
        async def call() -> datetime:
            return time_of(*await self._exchange(node, TIME))

        return await self.driven(call, repeatable=True)

    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        readings, scanned = await asyncio.gather(self._readings(keys), self._scanned(node, scan))
        return Page([record for record, _ in readings], [now for _, now in readings], scanned)

    async def _readings(self, keys: Sequence[bytes]) -> Sequence[tuple[bytes | None, datetime]]:
        batch = Batch(keys)
        await self.run(requests(Read, batch, by_family(keys)))
        for reading in batch.outcomes:
            if isinstance(reading, BackendError):
                raise reading
        return batch.outcomes

    async def _scanned(self, node: ClusterNode, scan: Command | None) -> Scanned | None:
        if scan is None:
            return None

        async def call() -> Scanned:
            if not self._probes_of(node):
                # Whoever holds its slots now is scanned in the next round of the walk.
                self._changes += 1
                return Scanned(b"", 0, [])
            return scanned_by(*await self._exchange(node, WHO_ARE_YOU, scan))

        return await self.driven(call, repeatable=True)

    async def _exchange(self, node: ClusterNode, *commands: Command) -> list[Any]:
        """Send commands without keys to a node, and in the same round trip reads of keys that it should hold.

        Raises:
            NotInSync: It does not hold one of them any more, as a primary that has become a replica.
        """
        probes = self._probes_of(node)
        found = await _piped(node, [*(("MGET", probe) for probe in probes), *commands])
        for reply in found[: len(probes)]:
            if isinstance(reply, MovedError):
                self._changes += 1
                raise NotInSync(f"the node {node.name} holds other slots than before")
            if not isinstance(reply, AskError):
                answered(reply)
        return found[len(probes) :]

    def _probes_of(self, node: ClusterNode) -> list[bytes]:
        return [probe for probe in self._probes if self.node_of(key_slot(probe)) == node.name]

    async def broken(self, error: Exception) -> None:
        # Some other node may have taken the slots over.
        await asyncio.shield(self._look_again())

    def given_up(self, waited: float) -> None:
        if not self._closed:
            self._look_again()

    def _look_again(self) -> asyncio.Task[None]:
        """Find out where the slots are, beside the calls: one that is given up leaves the next ones the answer."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._read_slots())
        return self._looking

    async def _read_slots(self) -> None:
        with suppress(*DRIVER_ERRORS):  # What is wrong is told by the call that goes on.
            await self._client.nodes_manager.initialize()

    async def _replies(self, requests: Sequence[Request]) -> Sequence[Any]:
        if self._client.get_default_node() is None:
            await self.nodes()
        by_node: defaultdict[str, list[Request]] = defaultdict(list)
        for request in requests:
            by_node[self.node_of(key_slot(request.key))].append(request)
        replies: dict[Request, Any] = {}

        async def ask(part: list[Request]) -> None:
            repeatable = all(request.repeatable for request in part)
            try:
                found: Sequence[Any] = await self.driven(lambda: self._asked(part, repeatable), repeatable=repeatable)
            except BackendError as error:
                found = [error] * len(part)
            replies.update(zip(part, map(mapped, found), strict=True))

        await asyncio.gather(*map(ask, by_node.values()))
        return [replies[request] for request in requests]

    async def _asked(self, requests: Sequence[Request], repeatable: bool) -> list[Any]:
        """Send requests to the primary of their keys, and on to where it refers."""
        slot = key_slot(requests[0].key)
        replies = await self._sent(self._client.nodes_manager.get_node_from_slot(slot), requests)
        broken = next((each for each in replies if isinstance(each, BROKEN)), None)
        if broken is not None and repeatable:
            raise broken
        if broken is not None:
            await self.broken(broken)
        referred: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for at, reply in enumerate(replies):
            if isinstance(reply, MovedError):
                await self._client.nodes_manager.move_slot(reply)
            elif isinstance(reply, AskError):
                referred[reply.node_addr].append(at)
        for address, places in referred.items():
            # On one connection: the permission that ASKING gives is for its next command.
            asked = await self._sent(self._node(*address), [requests[at] for at in places], asking=True)
            for at, reply in zip(places, asked, strict=True):
                replies[at] = reply
        return replies

    async def _sent(self, node: ClusterNode, requests: Sequence[Request], *, asking: bool = False) -> list[Any]:
        """Send requests to a node in one go; return each one's reply or error."""
        timed = self._time_question if requests[0].reads else ()
        before = [ASKING] if asking else []
        sent = [each for request in requests for each in (*before, request.command())]
        with under_way(*requests):
            found = await _piped(node, [*sent, *timed])
            replies = found[asking : len(sent) : 1 + asking]
            for request, reply in zip(requests, replies, strict=True):
                if not isinstance(reply, Exception):
                    request.check(reply)
                elif not isinstance(reply, ResponseError):
                    request.lost()
        if not requests[0].reads:
            return replies
        now = self._time_in(found[-1]) if timed else LATEST
        return [reply if isinstance(reply, Exception) else (reply, now) for reply in replies]

    def _node(self, host: str, port: int) -> ClusterNode:
        """Return a node by its address; one without slots is not known before keys move to it."""
        nodes = self._client.nodes_manager
        node = nodes.get_node(host, port)
        if node is None:
            node = ClusterNode(host, port, PRIMARY, **nodes.connection_kwargs)
            nodes.set_nodes(nodes.nodes_cache, {node.name: node})
        return node

    def node_of(self, slot: int) -> str:
        """Return the name of the primary that holds a slot, as far as is known; empty where it is not."""
        try:
            return str(self._client.nodes_manager.get_node_from_slot(slot).name)
        except RedisClusterException:
            return ""


async def _piped(node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
    """Send commands to a node in one go; return each one's reply or error."""
    sent = [PipelineCommand(at, *command) for at, command in enumerate(commands)]
    await node.execute_pipeline(sent)
    return [each.result for each in sent]

"""Redis Cluster: keys of one slot go together, and every primary gets its part side by side."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from agentic.backends.redis.keys import by_family
from agentic.backends.redis.operations import Read
from agentic.backends.redis.requests import Batch, Command, Request, requests, under_way
from agentic.backends.redis.server_info import DRIVER_ERRORS, LATEST, TIME, NotInSync, answered, time_of
from agentic.backends.redis.servers import (
    PING,
    WHO_ARE_YOU,
    Page,
    Scanned,
    Servers,
    mapped,
    piped,
    scanned_by,
    with_connection,
)
from agentic.backends.redis.topology import Address, Topology
from agentic.errors import BackendError

ASKING: Final = ("ASKING",)
BROKEN: Final = (RedisConnectionError, RedisTimeoutError)


class Cluster(Servers):
    """Redis Cluster: what concerns keys of one slot is one command, and each primary gets its commands in one go.

    A primary that fails fails its own agents alone; a walk of the fleet fails with any of them.
    """

    def __init__(self, topology: Topology, max_connections: int, timeout: float, probes: Sequence[bytes]) -> None:
        """Make ready to ask a cluster.

        Args:
            topology: Its nodes.
            max_connections: As of `Servers`.
            timeout: As of `Servers`.
            probes: A key of each family: a primary that answers for them holds their slots, and is up.
        """
        super().__init__(min(max_connections, topology.max_connections), timeout)
        self._topology = topology
        self._probes = probes
        self._changes = 0
        self._looking: asyncio.Task[None] | None = None

    async def ping(self) -> None:
        async def call() -> None:
            await self._topology.read()
            for replies in await asyncio.gather(*(self._exchange(node, PING) for node in self._primaries())):
                answered(*replies)

        await with_connection(call)

    async def _close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self._topology.aclose()

    async def nodes(self) -> Sequence[Any]:
        await self.execute(self._topology.read, repeatable=True)
        return self._primaries()

    def _primaries(self) -> list[Address]:
        """Return the nodes that hold a family, as far as is known."""
        return sorted({node for node in map(self._holder, self._probes) if node is not None})

    def _holder(self, key: bytes) -> Address | None:
        return self._topology.primary(key_slot(key))

    def layout(self) -> object:
        return self._changes, self._topology.primaries()

    async def ask(self, node: Any, *command: Any) -> Any:
        client = self._topology.client(node)
        return await self.execute(client.execute_command, *command, repeatable=True)

    async def time(self, node: Any) -> datetime:
        async def call() -> datetime:
            return time_of(*await self._exchange(node, TIME))

        return await self.execute(call, repeatable=True)

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

    async def _scanned(self, node: Address, scan: Command | None) -> Scanned | None:
        if scan is None:
            return None

        async def call() -> Scanned:
            if not self._probes_of(node):
                # Whoever holds its slots now is scanned in the next round of the walk.
                self._changes += 1
                return Scanned(b"", 0, [])
            return scanned_by(*await self._exchange(node, WHO_ARE_YOU, scan))

        return await self.execute(call, repeatable=True)

    async def _exchange(self, node: Address, *commands: Command) -> list[Any]:
        """Send commands without keys to a node, and in the same round trip reads of keys that it should hold.

        Raises:
            NotInSync: It does not hold one of them any more, as a primary that has become a replica.
        """
        probes = self._probes_of(node)
        found = await self._piped(node, [*(("MGET", probe) for probe in probes), *commands])
        for reply in found[: len(probes)]:
            if isinstance(reply, MovedError):
                self._changes += 1
                raise NotInSync(f"the node {node_name(node)} holds other slots than before")
            if not isinstance(reply, AskError):
                answered(reply)
        return found[len(probes) :]

    def _probes_of(self, node: Address) -> list[bytes]:
        return [probe for probe in self._probes if self._holder(probe) == node]

    async def broken(self, error: Exception) -> None:
        # Some other node may have taken the slots over.
        await asyncio.shield(self._look_again())

    def given_up(self, waited: float) -> None:
        if not self._closed:
            self._look_again()

    def _look_again(self) -> asyncio.Task[None]:
        """Find out where the slots are, beside the calls: one that is given up leaves the next ones the answer."""
        if self._looking is None or self._looking.done():
            self._topology.drop_idle()  # What broke one connection may have broken all.
            self._looking = asyncio.ensure_future(self._read_slots())
        return self._looking

    async def _read_slots(self) -> None:
        with suppress(*DRIVER_ERRORS):  # What is wrong is told by the call that goes on.
            await self._topology.read()

    async def _replies(self, requests: Sequence[Request]) -> Sequence[Any]:
        by_node: defaultdict[Address | None, list[Request]] = defaultdict(list)
        for request in requests:
            by_node[self._holder(request.key)].append(request)
        replies: dict[Request, Any] = {}

        async def ask(part: list[Request]) -> None:
            repeatable = all(request.repeatable for request in part)
            try:
                found: Sequence[Any] = await self.execute(self._asked, part, repeatable, repeatable=repeatable)
            except BackendError as error:
                found = [error] * len(part)
            replies.update(zip(part, map(mapped, found), strict=True))

        await asyncio.gather(*map(ask, by_node.values()))
        return [replies[request] for request in requests]

    async def _asked(self, requests: Sequence[Request], repeatable: bool) -> list[Any]:
        """Send requests to the primary of their keys, and on to where it refers."""
        node = self._holder(requests[0].key)
        if node is None:
            raise NotInSync("the primary is not known")
        replies = await self._sent(node, requests)
        broken = next((each for each in replies if isinstance(each, BROKEN)), None)
        if broken is not None and repeatable:
            raise broken
        if broken is not None:
            await self.broken(broken)
        referred: defaultdict[Address, list[int]] = defaultdict(list)
        for at, reply in enumerate(replies):
            if isinstance(reply, MovedError):
                self._topology.referred(node, reply)
            elif isinstance(reply, AskError):
                referred[self._topology.referred(node, reply)].append(at)
        for address, places in referred.items():
            # On one connection: the permission that ASKING gives is for its next command.
            asked = await self._sent(address, [requests[at] for at in places], asking=True)
            for at, reply in zip(places, asked, strict=True):
                replies[at] = reply
        return replies

    async def _sent(self, node: Address, requests: Sequence[Request], *, asking: bool = False) -> list[Any]:
        """Send requests to a node in one go; return each one's reply or error."""
        timed = self._time_question if requests[0].reads else ()
        before = [ASKING] if asking else []
        sent = [each for request in requests for each in (*before, request.command())]
        with under_way(*requests):
            found = await self._piped(node, [*sent, *timed])
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

    async def _piped(self, node: Address, commands: Sequence[Command]) -> list[Any]:
        """Send commands to a node in one go; return each one's reply or error."""
        return await piped(self._topology.client(node).connection_pool, commands, DRIVER_ERRORS)

    def node_of(self, slot: int) -> str:
        """Return the name of the primary that holds a slot, as far as is known; empty where it is not."""
        node = self._topology.primary(slot)
        return "" if node is None else node_name(node)


def node_name(node: Address) -> str:
    """Return host and port of a node as one word."""
    return f"{node[0]}:{node[1]}"

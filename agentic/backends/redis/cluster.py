"""Redis Cluster: one command per slot, sent to all primaries concurrently."""

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
from agentic.backends.redis.requests import Batch, Command, Request, lost_on_error, requests
from agentic.backends.redis.server_info import DRIVER_ERRORS, LATEST, TIME, NotInSync, time_of, unwrap
from agentic.backends.redis.servers import (
    PING,
    RUN_ID_QUERY,
    Page,
    Scanned,
    Servers,
    scanned_by,
    send_pipeline,
    translated,
    with_connection,
)
from agentic.backends.redis.topology import Address, Topology
from agentic.errors import BackendError

ASKING: Final = ("ASKING",)
CONNECTION_ERRORS: Final = (RedisConnectionError, RedisTimeoutError)


class Cluster(Servers):
    """Redis Cluster: a command has keys of one slot only, and each primary gets its commands in one pipeline.

    When a primary fails, only calls on its agents fail; a scan of the fleet fails when any primary does.
    """

    def __init__(self, topology: Topology, max_connections: int, timeout: float, probes: Sequence[bytes]) -> None:
        """Prepare the connections; send nothing yet.

        Args:
            topology: The nodes of the cluster.
            max_connections: As for `Servers`.
            timeout: As for `Servers`.
            probes: A key of each family: a primary that serves them still owns their slots.
        """
        super().__init__(min(max_connections, topology.max_connections), timeout)
        self._topology = topology
        self._probes = probes
        self._layout_changes = 0
        self._refresh: asyncio.Task[None] | None = None

    async def ping(self) -> None:
        async def call() -> None:
            await self._topology.read()
            for replies in await asyncio.gather(*(self._exchange(node, PING) for node in self._primaries())):
                unwrap(*replies)

        await with_connection(call)

    async def _close(self) -> None:
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait([self._refresh])
        await self._topology.aclose()

    async def nodes(self) -> Sequence[Any]:
        await self.execute(self._topology.read, repeatable=True)
        return self._primaries()

    def _primaries(self) -> list[Address]:
        """Return the known primaries that own at least one family."""
        return sorted({node for node in map(self._primary_of, self._probes) if node is not None})

    def _primary_of(self, key: bytes) -> Address | None:
        return self._topology.primary(key_slot(key))

    def layout(self) -> object:
        return self._layout_changes, self._topology.primaries()

    async def ask(self, node: Any, *command: Any) -> Any:
        client = self._topology.client(node)
        return await self.execute(client.execute_command, *command, repeatable=True)

    async def time(self, node: Any) -> datetime:
        async def call() -> datetime:
            return time_of(*await self._exchange(node, TIME))

        return await self.execute(call, repeatable=True)

    async def page(self, node: Any, keys: Sequence[bytes], scan: Command | None) -> Page:
        readings, scanned = await asyncio.gather(self._read_records(keys), self._scan_step(node, scan))
        return Page([record for record, _ in readings], [now for _, now in readings], scanned)

    async def _read_records(self, keys: Sequence[bytes]) -> Sequence[tuple[bytes | None, datetime]]:
        batch = Batch(keys)
        await self.run(requests(Read, batch, by_family(keys)))
        for reading in batch.outcomes:
            if isinstance(reading, BackendError):
                raise reading
        return batch.outcomes

    async def _scan_step(self, node: Address, scan: Command | None) -> Scanned | None:
        if scan is None:
            return None

        async def call() -> Scanned:
            if not self._probes_of(node):
                # Its slots have moved; the next round of the scan reads their new owner.
                self._layout_changes += 1
                return Scanned(b"", 0, [])
            return scanned_by(*await self._exchange(node, RUN_ID_QUERY, scan))

        return await self.execute(call, repeatable=True)

    async def _exchange(self, node: Address, *commands: Command) -> list[Any]:
        """Send commands without keys to a node, and in the same round trip read a key of each family it should own.

        Raises:
            NotInSync: The node no longer owns one of them, for example because it became a replica.
        """
        probes = self._probes_of(node)
        found = await self._send_pipeline(node, [*(("MGET", probe) for probe in probes), *commands])
        for reply in found[: len(probes)]:
            if isinstance(reply, MovedError):
                self._layout_changes += 1
                raise NotInSync(f"the node {node_name(node)} no longer owns the same slots")
            if not isinstance(reply, AskError):
                unwrap(reply)
        return found[len(probes) :]

    def _probes_of(self, node: Address) -> list[bytes]:
        return [probe for probe in self._probes if self._primary_of(probe) == node]

    async def on_connection_lost(self, error: Exception) -> None:
        # Another node may have taken over the slots.
        await asyncio.shield(self._start_refresh())

    def on_abandoned(self, waited: float) -> None:
        if not self._closed:
            self._start_refresh()

    def _start_refresh(self) -> asyncio.Task[None]:
        """Refresh the slot map in its own task, so that cancelling a call does not cancel the refresh."""
        if self._refresh is None or self._refresh.done():
            self._topology.drop_idle()  # The cause may have broken every connection.
            self._refresh = asyncio.ensure_future(self._refresh_slots())
        return self._refresh

    async def _refresh_slots(self) -> None:
        with suppress(*DRIVER_ERRORS):  # The call that lost its connection reports the failure.
            await self._topology.read()

    async def _replies(self, requests: Sequence[Request]) -> Sequence[Any]:
        by_node: defaultdict[Address | None, list[Request]] = defaultdict(list)
        for request in requests:
            by_node[self._primary_of(request.key)].append(request)
        replies: dict[Request, Any] = {}

        async def ask(part: list[Request]) -> None:
            repeatable = all(request.repeatable for request in part)
            try:
                found: Sequence[Any] = await self.execute(
                    self._send_and_redirect, part, repeatable, repeatable=repeatable
                )
            except BackendError as error:
                found = [error] * len(part)
            replies.update(zip(part, map(translated, found), strict=True))

        await asyncio.gather(*map(ask, by_node.values()))
        return [replies[request] for request in requests]

    async def _send_and_redirect(self, requests: Sequence[Request], repeatable: bool) -> list[Any]:
        """Send requests to the primary of their keys, and follow its ASK redirects."""
        node = self._primary_of(requests[0].key)
        if node is None:
            raise NotInSync("the primary of the slot is unknown")
        replies = await self._send(node, requests)
        lost = next((each for each in replies if isinstance(each, CONNECTION_ERRORS)), None)
        if lost is not None and repeatable:
            raise lost
        if lost is not None:
            await self.on_connection_lost(lost)
        referred: defaultdict[Address, list[int]] = defaultdict(list)
        for at, reply in enumerate(replies):
            if isinstance(reply, MovedError):
                self._topology.redirected(node, reply)
            elif isinstance(reply, AskError):
                referred[self._topology.redirected(node, reply)].append(at)
        for address, places in referred.items():
            # In one pipeline: ASKING applies to the next command on its connection only.
            asked = await self._send(address, [requests[at] for at in places], asking=True)
            for at, reply in zip(places, asked, strict=True):
                replies[at] = reply
        return replies

    async def _send(self, node: Address, requests: Sequence[Request], *, asking: bool = False) -> list[Any]:
        """Send requests to a node in one pipeline; return the reply or error of each."""
        timed = self._time_query if requests[0].reads else ()
        before = [ASKING] if asking else []
        sent = [each for request in requests for each in (*before, request.command())]
        with lost_on_error(*requests):
            found = await self._send_pipeline(node, [*sent, *timed])
            replies = found[asking : len(sent) : 1 + asking]
            for request, reply in zip(requests, replies, strict=True):
                if not isinstance(reply, Exception):
                    request.check(reply)
                elif not isinstance(reply, ResponseError):
                    request.lost()
        if not requests[0].reads:
            return replies
        now = self._parse_time(found[-1]) if timed else LATEST
        return [reply if isinstance(reply, Exception) else (reply, now) for reply in replies]

    async def _send_pipeline(self, node: Address, commands: Sequence[Command]) -> list[Any]:
        """Send commands to a node in one pipeline; return the reply or error of each."""
        return await send_pipeline(self._topology.client(node).connection_pool, commands, DRIVER_ERRORS)

    def node_of(self, slot: int) -> str:
        """Return the name of the primary that owns a slot; empty if unknown."""
        node = self._topology.primary(slot)
        return "" if node is None else node_name(node)


def node_name(node: Address) -> str:
    """Return a node as `host:port`."""
    return f"{node[0]}:{node[1]}"

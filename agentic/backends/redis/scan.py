"""Scan a fleet in Redis: read each record once, even if servers fail over or slots move meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from agentic.backends.redis.keys import Keys
from agentic.backends.redis.requests import Command
from agentic.backends.redis.servers import Scanned, Servers
from agentic.backends.seen import Seen
from agentic.concurrency import mark_retrieved
from agentic.errors import BackendUnavailableError

T = TypeVar("T")

Record = tuple[bytes, bytes | None, datetime]
"""A key, its value (None if it was deleted since the scan or is not a string), and its server's time."""

PAGE_SIZE: Final = 500
"""How many records a page has at most, and how many keys a SCAN visits at least."""

LONGEST_STEP: Final = 8_000
"""How many keys a SCAN visits at most; the server is blocked meanwhile, for some milliseconds."""

MAX_STARTS: Final = 3
"""How often a scan is started at most; it restarts if its server was replaced or slots moved between servers."""


class RecordPage(NamedTuple):
    """Records of one server, and its time before the scan; None if the time was not requested."""

    records: Sequence[Record]
    began: datetime | None


class ServerScan:
    """The position of the scan of one server, and the keys found but not yet taken.

    A cursor is valid only on the server process that returned it. So each reply carries the run id of its server, and
    the scan restarts when that changes.

    Pure state: no clock, no I/O.

    Attributes:
        node: The server.
        began: As in `RecordPage`.
    """

    def __init__(self, node: Any, began: datetime | None, pattern: bytes, page_size: int) -> None:
        """Start at the first key.

        Args:
            node: The server.
            began: As in `RecordPage`.
            pattern: The keys to find.
            page_size: How many keys `take` returns at most, and a SCAN visits at least.
        """
        self.node = node
        self.began = began
        self._pattern = pattern
        self._page_size = page_size
        self._starts = 0
        self._start()

    def _start(self) -> None:
        self._starts += 1
        self._run: bytes | None = None
        self._cursor: int | None = 0
        self._step = self._page_size
        self._found: list[bytes] = []

    def is_over(self) -> bool:
        """Return whether all keys were found and taken."""
        return self._cursor is None and not self._found

    def take(self) -> list[bytes]:
        """Remove and return a page of the found keys."""
        taken, self._found = self._found[: self._page_size], self._found[self._page_size :]
        return taken

    def next_step(self) -> Command | None:
        """Return the command that finds more keys; None if there are no more, or a page is full."""
        if self._cursor is None or len(self._found) >= self._page_size:
            return None
        return ("SCAN", self._cursor, b"MATCH", self._pattern, b"COUNT", self._step)

    def scanned(self, step: Scanned, own: Sequence[bytes]) -> None:
        """Record the keys that a step found.

        Args:
            step: The reply to `next_step`.
            own: The keys in it that belong to the registry.

        Raises:
            BackendUnavailableError: The server changed `MAX_STARTS` times.
        """
        if self._run is None:
            self._run = step.server
        if step.server == self._run:
            self._step = _next_length(self._step, len(own), self._page_size)
            self._cursor = step.cursor or None
            self._found += own
        elif self._starts < MAX_STARTS:
            self._start()
        else:
            raise BackendUnavailableError("the server kept changing while its agents were read")


class FleetScan:
    """Reads each record of a registry once. One round trip per page fetches its records and the next page's keys.

    If slots move between servers meanwhile, all servers are scanned again and keys already read are skipped.
    """

    def __init__(
        self,
        servers: Servers,
        keys: Keys,
        *,
        time_of: Callable[[Any], Awaitable[datetime]] | None = None,
        page_size: int = PAGE_SIZE,
    ) -> None:
        """Prepare a scan; no I/O.

        Args:
            servers: The servers to scan.
            keys: The keys of the registry.
            time_of: Returns the time of a server; called before each server is scanned.
            page_size: As in `ServerScan`.
        """
        self._servers = servers
        self._keys = keys
        self._time_of = time_of
        self._page_size = page_size
        self._seen = Seen[bytes]()
        self._starts = 0
        self._layout: object = None
        self._nodes: list[Any] = []
        self._scan: ServerScan | None = None
        self._ahead: asyncio.Future[RecordPage | None] | None = None

    async def next(self, work: Callable[[RecordPage], Awaitable[T]]) -> tuple[T, bool]:
        """Pass the next page to `work`; return its result, and whether there is another page.

        The following page is read while `work` runs; if that fails, the next call raises the error. A page of another
        server is not read ahead: if that server hangs, the work on this page still counts. No task is left running
        when a call ends.

        Raises:
            BackendUnavailableError: A server did not answer, or kept changing.
        """
        page = await self._read() if self._ahead is None else self._ahead.result()
        self._ahead = None
        if page is None:
            return await work(RecordPage([], None)), False
        if self._scan is None or self._scan.is_over():
            return await work(page), True
        self._ahead = ahead = asyncio.ensure_future(self._read())
        ahead.add_done_callback(mark_retrieved)
        try:
            await asyncio.sleep(0)  # Let it send its request before the work starts.
            result = await work(page)
            await asyncio.wait([ahead])
        except BaseException:
            ahead.cancel()
            await asyncio.wait([ahead])
            raise
        is_last = not ahead.cancelled() and ahead.exception() is None and ahead.result() is None
        return result, not is_last

    async def next_keys(self) -> list[bytes] | None:
        """Return a page of keys without their records, possibly with repeated keys; None after the last page.

        Raises:
            BackendUnavailableError: As in `next`.
        """
        scan = await self._current_scan()
        if scan is None:
            return None
        keys = scan.take()
        if scan.next_step() is not None:
            await self._exchange(scan, [])
        return keys

    async def _read(self) -> RecordPage | None:
        scan = await self._current_scan()
        if scan is None:
            return None
        return RecordPage(await self._exchange(scan, self._seen.only_new(scan.take())), scan.began)

    async def _exchange(self, scan: ServerScan, keys: Sequence[bytes]) -> list[Record]:
        records, times, step = await self._servers.page(scan.node, keys, scan.next_step())
        if step is not None:
            scan.scanned(step, self._keys.own(step.keys))
        return list(zip(keys, records, times, strict=True))

    async def _current_scan(self) -> ServerScan | None:
        """Return the unfinished scan of a server, starting the next one if needed; None after the last server."""
        while self._scan is None or self._scan.is_over():
            if not self._nodes and not await self._start():
                await self._seen.forget()
                return None
            node = self._nodes.pop(0)
            began = None if self._time_of is None else await self._time_of(node)
            self._scan = ServerScan(node, began, self._keys.pattern, self._page_size)
            await self._exchange(self._scan, [])
        return self._scan

    async def _start(self) -> bool:
        """Find the servers to scan; return False if they were all scanned with the current layout of slots."""
        nodes = await self._servers.nodes()
        layout = self._servers.layout()
        if self._starts == MAX_STARTS or (self._starts and layout == self._layout):
            return False
        self._starts += 1
        self._nodes, self._layout = list(nodes), layout
        return True


def _next_length(step: int, found: int, page_size: int) -> int:
    """Return how many keys to visit next: more if few of them belong to the registry, fewer if a page overflows."""
    if found < page_size / 2:
        return min(2 * step, LONGEST_STEP)
    return max(step * page_size // found, page_size) if found > 2 * page_size else step

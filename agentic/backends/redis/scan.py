"""A walk of the fleet in Redis: every record once, whichever server answers and however keys move meanwhile."""

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
"""A key, what it holds (None where it has gone since it was scanned, or is no string), and its server's time."""

PAGE_SIZE: Final = 500
"""How many records a page has at most, and how many keys a step of a scan passes at least."""

LONGEST_STEP: Final = 8_000
"""How many keys a step of a scan passes at most: while it does, some milliseconds, the server does nothing else."""

MAX_STARTS: Final = 3
"""How often a scan is started: anew where its server became another one, or slots moved between servers."""


class RecordPage(NamedTuple):
    """Records of one server, and its time before it was scanned; None where that was not asked."""

    records: Sequence[Record]
    began: datetime | None


class ServerScan:
    """How far the scan of one server has come, and the keys that it has found and that were not taken yet.

    A scan's cursor means nothing to another server, or to the same one restarted. So each step says by which run of
    which server it was made, and where that changes the scan starts anew.

    Pure state: no clock, no I/O.

    Attributes:
        node: The server.
        began: As of `RecordPage`.
    """

    def __init__(self, node: Any, began: datetime | None, pattern: bytes, page_size: int) -> None:
        """Begin at the first key.

        Args:
            node: The server.
            began: As of `RecordPage`.
            pattern: Which keys to find.
            page_size: How many keys `take` returns at most, and a step passes at least.
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
        """Return a page of the keys that were found, and forget them."""
        taken, self._found = self._found[: self._page_size], self._found[self._page_size :]
        return taken

    def next_step(self) -> Command | None:
        """Return the command that finds more keys; None where there are no more, or enough for a page."""
        if self._cursor is None or len(self._found) >= self._page_size:
            return None
        return ("SCAN", self._cursor, b"MATCH", self._pattern, b"COUNT", self._step)

    def scanned(self, step: Scanned, own: Sequence[bytes]) -> None:
        """Take note of what a step has found.

        Args:
            step: The answer to `next_step`.
            own: Those of its keys that are the registry's.

        Raises:
            BackendUnavailableError: The server became another one again and again.
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
            raise BackendUnavailableError("the server became another one again and again while its agents were read")


class Walk:
    """Reads a registry's records, each key once, in one round trip a page: its records and the next page's keys.

    Where slots move between servers meanwhile, all servers are scanned again, passing over the keys that were read.
    """

    def __init__(
        self,
        servers: Servers,
        keys: Keys,
        *,
        time_of: Callable[[Any], Awaitable[datetime]] | None = None,
        page_size: int = PAGE_SIZE,
    ) -> None:
        """Make ready to walk; no I/O.

        Args:
            servers: Where the records are.
            keys: The registry's.
            time_of: Asked for the time of each server before it is scanned.
            page_size: As of `ServerScan`.
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
        """Read the next page; return what `work` makes of it, and whether there is another one.

        While `work` runs, the page after it is read; where that fails, the next call raises the error. Of another
        server nothing is read ahead: if that one hangs, the work on this page counts all the same. Nothing is under way
        once a call has ended.

        Raises:
            BackendUnavailableError: A server could not be asked, or changed again and again.
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
            await asyncio.sleep(0)  # Lets it send its request before the work begins.
            result = await work(page)
            await asyncio.wait([ahead])
        except BaseException:
            ahead.cancel()
            await asyncio.wait([ahead])
            raise
        is_last = not ahead.cancelled() and ahead.exception() is None and ahead.result() is None
        return result, not is_last

    async def next_keys(self) -> list[bytes] | None:
        """Return a page of keys alone, some of them perhaps for the second time; None after the last one.

        Raises:
            BackendUnavailableError: As of `next`.
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
        """Return the scan that goes on: of the server under way, or else of the next one; None after the last one."""
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
        """Find the servers to be scanned; return False where those that were scanned are still the ones."""
        nodes = await self._servers.nodes()
        layout = self._servers.layout()
        if self._starts == MAX_STARTS or (self._starts and layout == self._layout):
            return False
        self._starts += 1
        self._nodes, self._layout = list(nodes), layout
        return True


def _next_length(step: int, found: int, page_size: int) -> int:
    """Return how many keys to pass next: more where few of them are the registry's, fewer where a page overflows."""
    if found < page_size / 2:
        return min(2 * step, LONGEST_STEP)
    return max(step * page_size // found, page_size) if found > 2 * page_size else step

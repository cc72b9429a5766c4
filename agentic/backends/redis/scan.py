"""A walk of the fleet in Redis: every record once, whichever server answers and however keys move meanwhile."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

from agentic.backends.redis.keys import Keys
from agentic.backends.redis.requests import Command
from agentic.backends.redis.servers import Servers
from agentic.backends.seen import Seen
from agentic.concurrency import one_ahead
from agentic.errors import BackendUnavailableError

Record = tuple[bytes, bytes | None, datetime]
"""A key, what it holds (None where it has gone since it was scanned, or is no string), and its server's time."""

PAGE_SIZE: Final = 500
"""How many records a page has at most, and how many keys a step of a scan passes at least."""

LONGEST_STEP: Final = 8_000
"""How many keys a step of a scan passes at most: while it does, some milliseconds, the server does nothing else."""

MOST_ROUNDS: Final = 3
"""How often a walk is begun: anew where its server became another one, or slots moved between servers."""


class Walk:
    """Reads a registry's records, each key once, in one round trip a page: its records and the next page's keys.

    A scan's cursor means nothing to another server, or to the same one restarted. So each page says by which run of
    which server it was scanned, and where that changes the scan begins anew, passing over the keys it has given.
    """

    def __init__(self, servers: Servers, keys: Keys) -> None:
        self._servers = servers
        self._keys = keys
        self._seen = Seen[bytes]()

    async def nodes(self) -> AsyncGenerator[Any, None]:
        """Yield the servers to be scanned, all of them again where slots have moved meanwhile."""
        for _ in range(MOST_ROUNDS):
            nodes = await self._servers.nodes()
            layout = self._servers.layout()
            for node in nodes:
                yield node
            await self._servers.nodes()
            if self._servers.layout() == layout:
                break
        await self._seen.forget()

    async def pages(self) -> AsyncGenerator[list[Record], None]:
        """Yield the records of all servers.

        Raises:
            BackendUnavailableError: A server could not be asked, or changed again and again.
        """
        async with aclosing(self.nodes()) as nodes:
            async for node in nodes:
                async with self.pages_of(node) as pages:
                    async for page in pages:
                        yield page

    def pages_of(self, node: Any) -> aclosing[AsyncGenerator[list[Record], None]]:
        """Return the pages of one server, each next one under way while the one before is worked on.

        Raises:
            BackendUnavailableError: As `pages`.
        """
        return aclosing(one_ahead(self._round_trips(node)))

    async def _round_trips(self, node: Any) -> AsyncGenerator[list[Record], None]:
        for _ in range(MOST_ROUNDS):
            step, cursor, found = PAGE_SIZE, 0, list[bytes]()
            _, _, scanned = await self._servers.page(node, [], self._scan(cursor, step))
            server = scanned and scanned.server
            while scanned is None or scanned.server == server:
                if scanned is not None:
                    own = self._keys.own(scanned.keys)
                    step, cursor = _next_step(step, len(own)), scanned.cursor
                    found += own
                if not cursor and not found:
                    return
                keys, found = self._seen.only_new(found[:PAGE_SIZE]), found[PAGE_SIZE:]
                following = self._scan(cursor, step) if cursor and len(found) < PAGE_SIZE else None
                records, times, scanned = await self._servers.page(node, keys, following)
                yield list(zip(keys, records, times, strict=True))
        raise BackendUnavailableError("the server became another one again and again while its agents were read")

    def _scan(self, cursor: int, step: int) -> Command:
        return ("SCAN", cursor, b"MATCH", self._keys.pattern, b"COUNT", step)


def _next_step(step: int, found: int) -> int:
    """Return how many keys to pass next: more where few of them are the registry's, fewer where a page overflows."""
    if found < PAGE_SIZE / 2:
        return min(2 * step, LONGEST_STEP)
    return max(step * PAGE_SIZE // found, PAGE_SIZE) if found > 2 * PAGE_SIZE else step

"""A walk of the fleet in Redis: every record once, whichever server answers and however keys move meanwhile."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final

from agentic.backends.redis_keys import Keys
from agentic.backends.redis_requests import Command
from agentic.backends.redis_servers import Servers
from agentic.errors import BackendUnavailableError
from agentic.seen import Seen
from agentic.tasks import one_ahead

Record = tuple[bytes, bytes | None, datetime]
"""A key, what it holds (None where it has gone since it was scanned, or is no string), and its server's time."""

PAGE_SIZE: Final = 500
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
            _, scanned = await self._servers.page(node, [], self._scan(0))
            server = scanned and scanned.server
            while scanned is not None and scanned.server == server:
                keys = self._seen.only_new(self._keys.own(scanned.keys))
                following = self._scan(scanned.cursor) if scanned.cursor else None
                records, scanned = await self._servers.page(node, keys, following)
                yield [(key, record, now) for key, (record, now) in zip(keys, records, strict=True)]
            if scanned is None:
                return
        raise BackendUnavailableError("the server became another one again and again while its agents were read")

    def _scan(self, cursor: int) -> Command:
        return ("SCAN", cursor, "MATCH", self._keys.pattern, "COUNT", PAGE_SIZE)

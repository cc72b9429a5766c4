"""The ids of a fleet in order. Redis keeps no order, so they come from a scan of all keys and are cached."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from agentic.backends.redis.keys import encoded_id
from agentic.backends.redis.scan import FleetScan

WINDOW: Final = 20_000
"""How many ids a scan keeps, and so how many agents are returned per scan."""

MAX_WALKS: Final = 8
"""How many walks are cached, each with at most `WINDOW` ids or about 2 MB."""

KEYS_PAGE: Final = 2_000
"""How many keys a step of such a scan visits at least."""


class Window(NamedTuple):
    """Ids above `after`, in order: all of them if `is_last`, else the lowest ones."""

    after: bytes
    ids: list[bytes]
    is_last: bool


class OrderedIds:
    """Returns the ids of a fleet page by page, ordered by their bytes.

    The next ids are cached for each walk, not shared: an id registered after another walk's scan may have existed for
    the whole of this walk. A walk that was evicted, or that continues in another process, costs one more scan.
    """

    def __init__(self, start_scan: Callable[[int], FleetScan]) -> None:
        """Take a function that starts a scan of all keys with pages of the given size."""
        self._start_scan = start_scan
        self._windows: dict[str, Window] = {}

    async def page(self, after: bytes, limit: int, walk: str) -> tuple[list[bytes], bool]:
        """Return up to `limit` ids above `after`, none only at the end; and whether there are more."""
        window = self._windows.pop(walk, None)
        if window is None or not window.after <= after or (not window.is_last and after >= window.ids[-1]):
            window = await self._scan(after)
        first = bisect_right(window.ids, after)
        is_end = window.is_last and first + limit >= len(window.ids)
        if not is_end:
            self._windows[walk] = window
            if len(self._windows) > MAX_WALKS:
                del self._windows[next(iter(self._windows))]
        return window.ids[first : first + limit], not is_end

    async def _scan(self, after: bytes) -> Window:
        keys = self._start_scan(KEYS_PAGE)
        lowest: set[bytes] = set()
        above: bytes | None = None
        while (page := await keys.next_keys()) is not None:
            ids = map(encoded_id, page)
            lowest.update(id_ for id_ in ids if after < id_ and (above is None or id_ < above))
            if len(lowest) > 2 * WINDOW:
                kept = sorted(lowest)[:WINDOW]
                lowest, above = set(kept), kept[-1]
        ordered = sorted(lowest)
        return Window(after, ordered[:WINDOW], is_last=above is None and len(ordered) <= WINDOW)

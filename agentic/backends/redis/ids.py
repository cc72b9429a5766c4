"""The ids of a fleet in order, which Redis does not keep: found by a scan of all keys, and remembered for a while."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Final, NamedTuple

from agentic.backends.redis.keys import encoded_id
from agentic.backends.redis.scan import Walk

WINDOW: Final = 20_000
"""How many ids a scan keeps: so many agents are paged through between two scans."""

MAX_WALKS: Final = 8
"""How many walks are remembered: of each at most `WINDOW` ids, some 2 MB."""

KEYS_PAGE: Final = 2_000
"""How many keys a step of such a scan passes at least."""


class Window(NamedTuple):
    """The ids above `after`, in order; all of them where `is_last`, else those up to the last one here."""

    after: bytes
    ids: list[bytes]
    is_last: bool


class OrderedIds:
    """Pages through the ids of a fleet in the order of their bytes.

    Which ids come next is remembered by walk, for an id that another walk has missed may have been there for all of
    this one. A walk that was forgotten, or goes on in another process, costs one more scan.
    """

    def __init__(self, walk_keys: Callable[[int], Walk]) -> None:
        """Take what begins a walk of all keys, given the size of its pages."""
        self._walk_keys = walk_keys
        self._windows: dict[str, Window] = {}

    async def page(self, after: bytes, limit: int, walk: str) -> tuple[list[bytes], bool]:
        """Return ids above `after`, at most `limit`, none only where there are no more; and whether there are more."""
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
        keys = self._walk_keys(KEYS_PAGE)
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

"""What a walk of the fleet has given already, however large the fleet, without holding the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import anyio.lowlevel

Key = TypeVar("Key", str, bytes)


class Seen(Generic[Key]):
    """The keys that were given already: in many parts, none so large that its growth would hold the event loop.

    The parts are dicts, not sets, for the garbage collector passes over a dict of texts without a look at each.
    """

    def __init__(self) -> None:
        self._parts: list[dict[Key, None]] = [{} for _ in range(256)]

    def only_new(self, keys: Sequence[Key]) -> list[Key]:
        """Take note of keys; return those that were not there before."""
        parts, new = self._parts, []
        for key in keys:
            part = parts[hash(key) & 255]
            if key not in part:
                part[key] = None
                new.append(key)
        return new

    async def forget(self) -> None:
        """Free the keys a few parts at a time, for all at once would hold the event loop as well."""
        while self._parts:
            del self._parts[-4:]
            await anyio.lowlevel.checkpoint()

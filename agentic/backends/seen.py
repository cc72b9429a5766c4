"""The keys that a scan has already yielded, for fleets of any size, without blocking the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import anyio.lowlevel

Key = TypeVar("Key", str, bytes)


class Seen(Generic[Key]):
    """A set of keys in 256 parts, so that growing one part never blocks the event loop for long.

    The parts are dicts, not sets: the garbage collector does not traverse a dict of strings.
    """

    def __init__(self) -> None:
        self._parts: list[dict[Key, None]] = [{} for _ in range(256)]

    def only_new(self, keys: Sequence[Key]) -> list[Key]:
        """Add keys; return those that were not yet in the set."""
        parts, new = self._parts, []
        for key in keys:
            part = parts[hash(key) & 255]
            if key not in part:
                part[key] = None
                new.append(key)
        return new

    async def forget(self) -> None:
        """Free the keys a few parts at a time; freeing all at once would block the event loop."""
        while self._parts:
            del self._parts[-4:]
            await anyio.lowlevel.checkpoint()

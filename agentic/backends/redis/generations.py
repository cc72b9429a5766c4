"""Generations of writes: they let the store refuse a delayed write once a later one was acknowledged."""

from __future__ import annotations

import secrets
import threading
from typing import Self


class Generations:
    """The generation of a registry object's writes, and the writes whose outcome is unknown.

    A write whose outcome is unknown may still arrive, so the generation rises before the next write is sent. The store
    keeps the highest generation it has seen from each registry object and refuses writes of a lower one: after a later
    write was acknowledged, an earlier one never takes effect. A refused write is sent again with the current
    generation.

    No clock, no I/O. Each family of keys stores its own generation, so knowledge about one family says nothing about
    the others. A registry object shares it with the second one in its thread for heartbeats.

    Attributes:
        writer: A random name for the registry object.
        current: The generation to send with the next write.
        unsettled: For each family in which a lost write may still take effect, the generation of that write.
    """

    def __init__(self) -> None:
        self.writer = secrets.token_hex(8)
        self.current = 0
        self.unsettled: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        """Copy and pickle it as a new one: a copy of a registry object numbers its own writes."""
        return type(self), ()

    def lost(self, family: bytes, sent: int) -> None:
        """Record that the outcome of a write sent with generation `sent` is unknown."""
        with self._lock:
            self.current = max(self.current, sent + 1)
            self.unsettled[family] = max(self.unsettled.get(family, 0), sent)

    def applied(self, family: bytes, sent: int) -> None:
        """Record that a write was applied: from now on the store refuses lower generations."""
        with self._lock:
            if sent > self.unsettled.get(family, sent):
                del self.unsettled[family]

    def refused(self, stored: int) -> None:
        """Record that a write was refused because the store has seen generation `stored`."""
        with self._lock:
            self.current = max(self.current, stored)

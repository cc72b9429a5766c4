"""Which writes of a registry object the store must not apply any more: those that later ones have overtaken."""

from __future__ import annotations

import secrets


class Generations:
    """The generation with which a registry object sends its writes, and what it knows of those that it has sent.

    A write whose outcome is unknown may still be on its way. So the generation rises before the next write leaves. The
    store keeps the highest that it has seen of each registry object, and refuses writes of a lower one: once a later
    write was acknowledged, an earlier one never takes effect. A write that was refused is sent again with the present
    generation.

    Pure state: no clock, no I/O. What it says of one family of keys holds for that family alone, for each keeps the
    generation for itself.

    Attributes:
        writer: A random name for the registry object.
        current: The generation of a write that leaves now.
        unsettled: The families in which a write of unknown outcome may still take effect, and its generation.
    """

    def __init__(self) -> None:
        self.writer = secrets.token_hex(8)
        self.current = 0
        self.unsettled: dict[bytes, int] = {}

    def lost(self, family: bytes, sent: int) -> None:
        """Take note that the outcome of a write that was sent with a generation is unknown."""
        self.current = max(self.current, sent + 1)
        self.unsettled[family] = max(self.unsettled.get(family, 0), sent)

    def applied(self, family: bytes, sent: int) -> None:
        """Take note that a write was applied: from then on the store refuses those of a lower generation."""
        if sent > self.unsettled.get(family, sent):
            del self.unsettled[family]

    def refused(self, stored: int) -> None:
        """Take note that a write was refused, since the store has seen a higher generation."""
        self.current = max(self.current, stored)

"""A page of the fleet, and the cursor with which its caller asks for the next one."""

from __future__ import annotations

import base64
import secrets
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from agentic.agent import AgentInfo
from agentic.errors import ConfigurationError
from agentic.options import text
from agentic.validation import MAX_ID_BYTES

MAX_PAGE: Final = 10_000
"""How many agents a page has at most."""

_CHECKSUM: Final = 4
_WALK: Final = 6
_BEYOND: Final = b"\xff"
"""Higher than what any UTF-8 begins with."""


class Page(msgspec.Struct, frozen=True):
    """A part of the fleet, as `AgentRegistry.page` returns it.

    Attributes:
        agents: In the order of their ids.
        cursor: What `page` takes to return the next part; None where this was the last one.
    """

    agents: tuple[AgentInfo, ...]
    cursor: str | None


class Position(NamedTuple):
    """Where a walk by pages goes on.

    Attributes:
        walk: What all pages of the walk have in common, and those of no other.
        after: The id that the walk has come to; empty at its beginning. May have lone surrogates, which stand for
            bytes, where a store holds a record whose id is no text.
    """

    walk: str
    after: str

    @classmethod
    def first(cls) -> Position:
        """Begin a walk."""
        return cls(secrets.token_hex(_WALK), "")

    @classmethod
    def of(cls, cursor: object) -> Position:
        """Return what a cursor stands for.

        Raises:
            ConfigurationError: It is none that a page has had.
        """
        given = text(cursor, "cursor")
        try:
            content = base64.b64decode(given + "=" * (-len(given) % 4), altchars=b"-_", validate=True)
        except ValueError:
            content = b""
        checksum, position = content[:_CHECKSUM], content[_CHECKSUM:]
        if len(position) <= _WALK or checksum != _checksum_of(position):
            raise ConfigurationError("cursor: must be one that a page of this registry has returned")
        return cls(position[:_WALK].hex(), position[_WALK:].decode(errors="surrogateescape"))

    def cursor(self) -> str:
        """Return a text that stands for the position, and that URLs take as it is."""
        after = self.after.encode(errors="surrogateescape")
        if len(after) > MAX_ID_BYTES:  # No agent's, so it need not be exact.
            after = after[:MAX_ID_BYTES] + _BEYOND
        position = bytes.fromhex(self.walk) + after
        return base64.urlsafe_b64encode(_checksum_of(position) + position).decode().rstrip("=")


def _checksum_of(position: bytes) -> bytes:
    return crc32(position).to_bytes(_CHECKSUM)

"""A page of the fleet, and the cursor for the next page."""

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
"""The most agents in a page."""

_CHECKSUM: Final = 4
_WALK: Final = 6
_BEYOND: Final = b"\xff"
"""Higher than the first byte of any UTF-8 character."""


class Page(msgspec.Struct, frozen=True):
    """A part of the fleet, as `AgentRegistry.page` returns it.

    Attributes:
        agents: Ordered by id.
        cursor: Pass it to `page` for the next part; None in the last page.
    """

    agents: tuple[AgentInfo, ...]
    cursor: str | None


class Position(NamedTuple):
    """The position at which the next page starts.

    Attributes:
        walk: A random key that is common to all pages of one walk.
        after: The id after which to continue; empty at the start. May contain lone surrogates, which represent bytes,
            if the store contains a record whose id is not valid UTF-8.
    """

    walk: str
    after: str

    @classmethod
    def first(cls) -> Position:
        """Return the start of a new walk."""
        return cls(secrets.token_hex(_WALK), "")

    @classmethod
    def of(cls, cursor: object) -> Position:
        """Return the position that a cursor represents.

        Raises:
            ConfigurationError: The cursor did not come from a page.
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
        """Return the position as a string that needs no escaping in URLs."""
        after = self.after.encode(errors="surrogateescape")
        if len(after) > MAX_ID_BYTES:  # Not the id of an agent, so it may be shortened.
            after = after[:MAX_ID_BYTES] + _BEYOND
        position = bytes.fromhex(self.walk) + after
        return base64.urlsafe_b64encode(_checksum_of(position) + position).decode().rstrip("=")


def _checksum_of(position: bytes) -> bytes:
    return crc32(position).to_bytes(_CHECKSUM)

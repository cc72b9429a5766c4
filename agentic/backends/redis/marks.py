"""Agents that a registry object has marked offline but not yet reported."""

from __future__ import annotations

import secrets
from collections.abc import Iterable


class Marks:
    """Outcomes of the calls that mark agents offline, until they are reported.

    For each registry object and family of keys, the store keeps the agents that the last such call marked, with a token
    of that call. So the outcome of a call with a lost reply can be read later, until the next call is sent.

    Pure state: no clock, no I/O.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, str] = {}
        self._unreported: list[str] = []

    def sent(self, family: bytes) -> str:
        """Record that a call is sent to a family; return its token."""
        self._open[family] = token = secrets.token_hex(8)
        return token

    def answered(self, family: bytes, ids: Iterable[str]) -> None:
        """Record the agents that the last call marked in a family."""
        self._open.pop(family, None)
        self._unreported += ids

    def found(self, family: bytes, token: str, ids: Iterable[str]) -> None:
        """Record what the store keeps about the last call in a family; with another token, the last call never ran."""
        self.answered(family, ids if token == self._open.get(family) else ())

    def unsettled(self) -> list[bytes]:
        """Return the families with a call whose outcome is unknown."""
        return list(self._open)

    def take(self) -> list[str]:
        """Return the agents to report, each once."""
        taken, self._unreported = self._unreported, []
        return taken

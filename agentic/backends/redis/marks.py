"""Which agents a registry object has marked offline and not reported yet."""

from __future__ import annotations

import secrets
from collections.abc import Iterable


class Marks:
    """What became of the calls that mark agents offline, until it has been reported.

    The store keeps, for each registry object and family of keys, which agents the last such call has marked, under a
    token of that call. So a call whose answer was lost can be asked for, as long as no further one is sent before.

    Pure state: no clock, no I/O.
    """

    def __init__(self) -> None:
        self._open: dict[bytes, str] = {}
        self._untold: list[str] = []

    def sent(self, family: bytes) -> str:
        """Take note that a call leaves for a family; return its token."""
        self._open[family] = token = secrets.token_hex(8)
        return token

    def answered(self, family: bytes, ids: Iterable[str]) -> None:
        """Take note of the agents that the call sent last has marked in a family."""
        self._open.pop(family, None)
        self._untold += ids

    def found(self, family: bytes, token: str, ids: Iterable[str]) -> None:
        """Take note of what the store keeps of the last call in a family; another token: the one sent never ran."""
        self.answered(family, ids if token == self._open.get(family) else ())

    def unsettled(self) -> list[bytes]:
        """Return the families in which agents may have been marked that are not known here."""
        return list(self._open)

    def take(self) -> list[str]:
        """Return the agents that are to be reported, once."""
        taken, self._untold = self._untold, []
        return taken

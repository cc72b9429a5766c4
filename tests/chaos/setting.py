"""What a run is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

INTERVAL: Final = 0.5
"""Seconds between a session's heartbeats."""

STALE_AFTER: Final = 2.0
"""The reapers' ttl."""

KEPT_FOR: Final = 8.0
"""The registries' ttl."""

TIMEOUT: Final = 1.0

TICK: Final = INTERVAL / 10
"""Seconds between two ticks of a client's event loop, by which its intervals are counted: none passes while it is held."""

CROWD: Final = 250
"""Agents of each client that are never heard of again: with them, a fleet takes several pages."""

CROWD_KEPT_FOR: Final = 3600.0


class Setting(msgspec.Struct, frozen=True):
    """What a client process needs to know."""

    who: str
    url: str
    folder: str
    seed: int
    sessions: int = 8
    others: int = 4
    bug: str = ""

    @property
    def journal(self) -> Path:
        return Path(self.folder) / f"{self.who}.journal"

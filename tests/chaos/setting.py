"""The parameters of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

INTERVAL: Final = 0.5
"""Seconds between a session's heartbeats."""

STALE_AFTER: Final = 2.0
"""The reapers' ttl."""

TTL: Final = 8.0
"""The registries' ttl."""

TIMEOUT: Final = 1.0

TICK: Final = INTERVAL / 10
"""Seconds between ticks of a client's event loop, which count its intervals: none passes while it is blocked."""

IDLE_AGENTS: Final = 250
"""Agents of each client that never send a heartbeat; they make the fleet span several pages."""

IDLE_TTL: Final = 3600.0

SHARED: Final = "shared-"
"""The beginning of ids that every client uses, so that sessions of one agent compete."""


class Setting(msgspec.Struct, frozen=True):
    """The parameters of a client process."""

    who: str
    url: str
    folder: str
    seed: int
    sessions: int = 8
    others: int = 4
    shared: int = 3
    bug: str = ""

    @property
    def journal(self) -> Path:
        return Path(self.folder) / f"{self.who}.journal"

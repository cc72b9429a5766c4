"""The result of a diagnosis: facts about a store, with advice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

READS_ONLY: Final = "may read only"
"""The `found` text for a store user that has no write permissions."""


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One fact about a store.

    Attributes:
        level: Its severity.
        subject: What was checked.
        found: What was found.
        advice: What to do about it; empty if there is nothing to do.
    """

    level: Level
    subject: str
    found: str
    advice: str = ""

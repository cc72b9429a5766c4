"""What a look at a store finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

READS_ONLY: Final = "may read only"
"""What a store finds of a user that is meant to look and not to write."""


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One fact about a store.

    Attributes:
        level: How much it matters.
        subject: What was looked at.
        found: What was found.
        advice: What to do about it; empty where there is nothing to do.
    """

    level: Level
    subject: str
    found: str
    advice: str = ""

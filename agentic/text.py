"""Text from anywhere, made safe for a message: on one line, printable, bounded."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 200
"""Characters that a message shows of a text at most, escapes included."""


def printable(text: str, longest: int = LONGEST) -> str:
    r"""Return a text with every character that is not printable escaped, cut after `longest` characters.

    Newlines, terminal codes, bidirectional controls and lone surrogates become escapes such as `\n` or `\x1b`.
    """
    plain = str.__str__(text)  # A subclass may define methods of its own.
    cut = plain[: longest + 1]
    if not cut.isprintable():
        cut = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    return cut if len(cut) <= longest else f"{cut[:longest]}..."


def type_name(value: object) -> str:
    """Return the name of a value's type, for a message that must not show the value."""
    return printable(type(value).__name__, 60)

"""Text from anywhere, made safe for a message: on one line, printable, bounded."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 200
"""Characters that a message shows of a text at most, escapes included."""


def printable(text: str, longest: int | None = LONGEST) -> str:
    r"""Return a text with every character that is not printable escaped, cut after `longest` characters.

    Newlines, terminal codes, bidirectional controls and lone surrogates become escapes such as `\n` or `\x1b`.
    """
    shown = str.__str__(text)  # A subclass may define methods of its own.
    if longest is not None:
        shown = shown[: longest + 1]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)
    return shown if longest is None or len(shown) <= longest else f"{shown[:longest]}..."


def plain(value: object) -> object:
    """Return a `str`, `int` or `float` without the methods of its subclass, and anything else as it is."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, float) else value


def type_name(value: object) -> str:
    """Return the name of a value's type, for a message that must not show the value."""
    return printable(type(value).__name__, 60)

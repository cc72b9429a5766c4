"""Make untrusted text safe for messages: one line, printable, of limited length."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 200
"""The most characters of a text that a message shows, escapes included."""


def printable(text: str, longest: int | None = LONGEST) -> str:
    r"""Escape every unprintable character, and cut the text after `longest` characters.

    Newlines, terminal codes, bidirectional controls and lone surrogates become escapes such as `\n` or `\x1b`.
    """
    shown = str.__str__(text)  # A subclass may override these methods.
    if longest is not None:
        shown = shown[: longest + 1]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)
    return shown if longest is None or len(shown) <= longest else f"{shown[:longest]}..."


def plain(value: object) -> object:
    """Convert an instance of a subclass of `str`, `int` or `float` to the plain type; return other values unchanged."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, float) else value


def type_name(value: object) -> str:
    """Return the name of a value's type, for messages that must not show the value."""
    return printable(type(value).__name__, 60)

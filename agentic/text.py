"""Text from anywhere, made safe for a message: on one line, printable, bounded."""

from __future__ import annotations

from typing import Final

LONGEST: Final = 600
"""Characters of a text that a message shows at most: more than an id of 512 bytes has."""


def printable(text: str, longest: int = LONGEST) -> str:
    r"""Return a text with every character that is not printable escaped, cut after `longest` characters.

    Newlines, terminal codes, bidirectional controls and lone surrogates become escapes such as `\n` or `\x1b`.
    """
    # A subclass may define methods of its own.
    plain = str.__str__(text)
    cut = plain if len(plain) <= longest else f"{plain[:longest]}..."
    return cut if cut.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)

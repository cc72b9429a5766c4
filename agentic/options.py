"""Check options, except durations, which `agentic.clock` checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from agentic.errors import ConfigurationError
from agentic.text import plain, type_name

MAX_TEXT: Final = 4096
"""The most characters of a text option: the limit for paths on Linux."""

_FLAGS: Final = {"yes": True, "true": True, "no": False, "false": False}

C = TypeVar("C", bound=Callable[..., object])


def count(value: object, name: str, least: int = 1, most: int = 2**31 - 1) -> int:
    """Check a whole number, and return it as a plain `int`.

    Raises:
        ConfigurationError: It is not an int from `least` to `most`; the message begins with `name`.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name}: must be an int, got {type_name(value)}")
    if not least <= value <= most:
        raise ConfigurationError(f"{name}: must be from {least} to {most}, got {shown_number(value)}")
    return value


def fraction(value: object, name: str) -> float:
    """Check a fraction from 0.000001 to 1, and return it as a `float`.

    Raises:
        ConfigurationError: It is not a number in that range; the message begins with `name`.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name}: must be a number, got {type_name(value)}")
    if not 1e-6 <= value <= 1:
        raise ConfigurationError(f"{name}: must be from 0.000001 to 1, got {shown_number(value)}")
    return float(value)


def flag(value: object, name: str) -> bool:
    """Check a `bool`, and return it.

    Raises:
        ConfigurationError: It is anything else; the message begins with `name`.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}: must be True or False, got {type_name(value)}")
    return value


def flag_of(text: str, name: str) -> bool:
    """Convert `yes`, `no`, `true` or `false` to a `bool`.

    Raises:
        ConfigurationError: It is any other text; the message begins with `name`.
    """
    if text not in _FLAGS:
        raise ConfigurationError(f"{name}: must be yes, no, true or false")
    return _FLAGS[text]


def text(value: object, name: str) -> str:
    """Check text that must not be empty, and return it as a plain `str`.

    Raises:
        ConfigurationError: It is anything else, exceeds 4,096 characters, or contains a lone surrogate; the message
            begins with `name`, and does not show the text, which may be a secret.
    """
    value = plain(value)
    if not isinstance(value, str):
        raise ConfigurationError(f"{name}: must be a string, got {type_name(value)}")
    if not value:
        raise ConfigurationError(f"{name}: must not be empty")
    if len(value) > MAX_TEXT:
        raise ConfigurationError(f"{name}: must be at most {MAX_TEXT} characters, got {len(value)}")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfigurationError(f"{name}: holds a lone surrogate")
    return value


def function(value: C, name: str) -> C:
    """Check a callable, and return it.

    Raises:
        ConfigurationError: It is not callable; the message begins with `name`.
    """
    if not callable(value):
        raise ConfigurationError(f"{name}: must be callable, got {type_name(value)}")
    return value


def shown_number(value: float) -> str:
    """Format a number for a message. Python may refuse to convert a large int to text, so its bits are counted."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return str(value)

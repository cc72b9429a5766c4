"""What may stand in a field of an agent: each check returns the value in plain types, or raises `InvalidAgentError`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from agentic.clock import to_utc
from agentic.errors import InvalidAgentError
from agentic.frozen import FrozenDict
from agentic.options import shown_number
from agentic.text import plain, printable, type_name

MAX_ID_BYTES: Final = 512
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_ENTRIES: Final = 256
"""Capabilities of an agent at most, and entries of its metadata."""

MAX_LOAD: Final = 2**63 - 1


def valid_id(agent_id: object) -> str:
    """Return the id as a plain `str`.

    Raises:
        InvalidAgentError: It is empty, no string, longer than 512 bytes of UTF-8, or holds a lone surrogate.
    """
    if type(agent_id) is str and 0 < len(agent_id) <= MAX_ID_BYTES and agent_id.isascii():
        return agent_id  # Most are, and each heartbeat comes by here.
    checked = _plain_text("id", agent_id)
    if not checked:
        raise InvalidAgentError("id", "agent ID is required")
    size = _utf8_size("id", checked)
    if size > MAX_ID_BYTES:
        raise InvalidAgentError("id", f"id: must be at most {MAX_ID_BYTES} bytes of UTF-8, got {size}")
    return checked


def text(field: str, value: object) -> str:
    """Return a text that UTF-8 can encode, as a plain `str`; it alone must not be longer than a record."""
    checked = _plain_text(field, value)
    if len(checked) > MAX_RECORD_BYTES:
        raise InvalidAgentError(field, f"{field}: must be at most {MAX_RECORD_BYTES} characters, got {len(checked)}")
    _utf8_size(field, checked)
    return checked


def capabilities(field: str, value: object) -> tuple[str, ...]:
    """Return a tuple of texts, 256 at most."""
    if not isinstance(value, (tuple, list)):
        raise InvalidAgentError(field, f"{field}: must be a tuple or list of strings, got {type_name(value)}")
    _check_entries(field, len(value))
    return tuple(text(f"{field}[{index}]", item) for index, item in enumerate(value))


def metadata(field: str, value: object) -> FrozenDict[str, str]:
    """Return an immutable mapping of texts to texts, with 256 entries at most."""
    if not isinstance(value, Mapping):
        raise InvalidAgentError(field, f"{field}: must be a dict of strings, got {type_name(value)}")
    _check_entries(field, len(value))
    checked = {}
    for key, item in value.items():
        name = text(f"{field} key", key)
        checked[name] = text(f"{field}['{printable(name, 60)}']", item)
    return FrozenDict(checked)


def instant(field: str, value: object) -> datetime | None:
    """Return an instant as a plain `datetime` in UTC, or None."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidAgentError(field, f"{field}: must be a datetime or None, got {type_name(value)}")
    try:
        if value.utcoffset() is not None:
            utc = to_utc(value)
            return datetime.combine(utc.date(), utc.timetz())
    except Exception as error:
        raise InvalidAgentError(field, f"{field}: its tzinfo failed: {printable(str(error), 100)}") from error
    raise InvalidAgentError(field, f"{field}: must be aware (have a tzinfo)")


def load(field: str, value: object) -> int:
    """Return a load, from 0 to 2**63 - 1."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidAgentError(field, f"{field}: must be an int, got {type_name(value)}")
    if value < 0:
        raise InvalidAgentError(field, f"{field}: must not be negative")
    if value > MAX_LOAD:
        raise InvalidAgentError(field, f"{field}: must be at most 2**63 - 1, got {shown_number(value)}")
    return value


def too_large(size: int) -> InvalidAgentError:
    """Return the error for a record of `size` bytes."""
    return InvalidAgentError("agent", f"agent: its record must be at most {MAX_RECORD_BYTES} bytes of JSON, got {size}")


def _plain_text(field: str, value: object) -> str:
    # A subclass (an enum member, say) is stored as its plain text.
    value = plain(value)
    if not isinstance(value, str):
        raise InvalidAgentError(field, f"{field}: must be a string, got {type_name(value)}")
    return value


def _utf8_size(field: str, checked: str) -> int:
    if checked.isascii():
        return len(checked)
    try:
        return len(checked.encode())
    except UnicodeEncodeError as error:
        position = error.start
    raise InvalidAgentError(field, f"{field}: holds a lone surrogate at position {position}")


def _check_entries(field: str, number: int) -> None:
    if number > MAX_ENTRIES:
        raise InvalidAgentError(field, f"{field}: must have at most {MAX_ENTRIES} entries, got {number}")

"""Validate agents, changes and ids. Each check returns plain types, or raises an `InvalidAgentError` for the field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from msgspec.structs import astuple

from agentic.agent import CHANGEABLE, FIELDS, STATUSES, AgentChanges, AgentInfo, AgentStatus, Kind
from agentic.clock import to_utc
from agentic.errors import InvalidAgentError
from agentic.frozen import FrozenDict
from agentic.incarnations import LOWEST
from agentic.options import shown_number
from agentic.text import plain, printable, type_name
from agentic.wire import encode_agent

MAX_ID_BYTES: Final = 512
MAX_RECORD_BYTES: Final = 64 * 1024
MAX_ENTRIES: Final = 256
"""The most capabilities of an agent, and the most entries of its metadata."""

MAX_NUMBER: Final = 2**63 - 1
_INCARNATION_SIZE: Final = len(f',"incarnation":{LOWEST}')

_SURELY_SMALL: Final = 10_000
"""Strings plus characters. JSON needs at most 6 bytes for each, so a record below this size is within the limit."""


# --- agents and changes ---


def valid_agent(agent: object) -> AgentInfo:
    """Check every field of an agent. Return it with plain types, times in UTC, and without an incarnation.

    Raises:
        InvalidAgentError: A field is invalid, and named in the message, or the record would exceed 64 KiB.
    """
    if not isinstance(agent, AgentInfo):
        raise InvalidAgentError("agent", f"agent: must be an AgentInfo, got {type_name(agent)}")
    if _is_usual(agent):
        return agent
    values = zip(_CHECKS.items(), astuple(agent), strict=False)  # A subclass may have more fields.
    checked = AgentInfo(*[check(name, value) for (name, check), value in values])
    check_size(checked)
    return checked


def valid_text(field: str, value: object, longest: int) -> str:
    """Return a text as a plain `str`.

    Raises:
        InvalidAgentError: It is not a string, exceeds `longest` characters, or contains a lone surrogate.
    """
    checked = _text(field, value)
    if len(checked) > longest:
        raise InvalidAgentError(field, f"{field}: must be at most {longest} characters, got {len(checked)}")
    return checked


def valid_changes(changes: Mapping[str, object]) -> AgentChanges:
    """Check the fields to change. Return a copy with plain types.

    Raises:
        InvalidAgentError: A value is invalid; the message names the field.
        TypeError: A field does not exist, or cannot change.
    """
    checked: dict[str, object] = {}
    for name, value in changes.items():
        check = _CHANGE_CHECKS.get(name)
        if check is None:
            raise TypeError(f"update() cannot change '{printable(name, 60)}', only {', '.join(CHANGEABLE)}")
        checked[name] = check(name, value)
    _check_characters(checked.values())
    return checked  # type: ignore[return-value]


def check_size(agent: AgentInfo) -> None:
    """Check that the record of an agent, with an incarnation, does not exceed 64 KiB.

    Raises:
        InvalidAgentError: It does.
    """
    _check_characters(astuple(agent))
    size = len(encode_agent(agent)) + (0 if agent.incarnation else _INCARNATION_SIZE)
    if size > MAX_RECORD_BYTES:
        raise too_large(size)


def too_large(size: int) -> InvalidAgentError:
    """Return the error for a record of `size` bytes."""
    return InvalidAgentError("agent", f"agent: its record must be at most {MAX_RECORD_BYTES} bytes of JSON, got {size}")


def _check_characters(values: Iterable[object]) -> None:
    """Refuse values with more characters than a record may have bytes, before they are encoded."""
    size = 0
    for value in values:
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, tuple):
            size += sum(map(len, value))
        elif isinstance(value, FrozenDict):
            size += sum(map(len, value)) + sum(map(len, value.values()))
    if size > MAX_RECORD_BYTES:
        raise too_large(size)


# --- the usual agent ---

_USUAL: Final = {
    Kind.TEXT: "type({0}) is str",
    Kind.TEXTS: "type({0}) is tuple",
    Kind.STATUS: "type({0}) is AgentStatus",
    Kind.INSTANT: "{0} is None",
    Kind.NUMBER: "type({0}) is int and 0 <= {0} <= MAX_NUMBER",
    Kind.ENTRIES: "type({0}) is FrozenDict",
    Kind.INCARNATION: "not {0}",
}
_TEXTS_IN: Final = {Kind.TEXT: "{0}", Kind.TEXTS: "*{0}", Kind.ENTRIES: "*{0}, *{0}.values()"}


def _compiled() -> Callable[[AgentInfo], bool]:
    """Compile `_is_usual` from the table of fields; a loop over the fields would take 50 % longer."""
    named = [(f"agent.{field.name}", field.kind) for field in FIELDS]
    usual = " and ".join(_USUAL[kind].format(name) for name, kind in named)
    texts = ", ".join(_TEXTS_IN[kind].format(name) for name, kind in named if kind in _TEXTS_IN)
    usual += " and agent.draining is None and not agent.claimed"
    return eval(f"lambda agent: type(agent) is AgentInfo and {usual} and _are_usual([{texts}])")  # type: ignore[no-any-return] # noqa: S307


def _are_usual(texts: list[str]) -> bool:
    """Return whether strings, with the id first, are plain, ASCII, and far below all limits."""
    size = len(texts)
    if size > MAX_ENTRIES:
        return False
    for each in texts:
        if type(each) is not str or not each.isascii():
            return False
        size += len(each)
    return 0 < len(texts[0]) <= MAX_ID_BYTES and size <= _SURELY_SMALL


_is_usual: Final = _compiled()
"""Return whether an agent needs no further check, which is the common case."""


# --- fields ---


def valid_id(agent_id: object) -> str:
    """Return the id as a plain `str`.

    Raises:
        InvalidAgentError: It is not a string, is empty, exceeds 512 bytes in UTF-8, or contains a lone surrogate.
    """
    if type(agent_id) is str and 0 < len(agent_id) <= MAX_ID_BYTES and agent_id.isascii():
        return agent_id  # Hot path: each heartbeat gets here, usually with such an id.
    checked = _plain_text("id", agent_id)
    if not checked:
        raise InvalidAgentError("id", "agent ID is required")
    size = _utf8_size("id", checked)
    if size > MAX_ID_BYTES:
        raise InvalidAgentError("id", f"id: must be at most {MAX_ID_BYTES} bytes of UTF-8, got {size}")
    return checked


def _text(field: str, value: object) -> str:
    """Return a string that UTF-8 can encode, as a plain `str`. By itself it must not exceed the size of a record."""
    checked = _plain_text(field, value)
    if len(checked) > MAX_RECORD_BYTES:
        raise InvalidAgentError(field, f"{field}: must be at most {MAX_RECORD_BYTES} characters, got {len(checked)}")
    _utf8_size(field, checked)
    return checked


def _texts(field: str, value: object) -> tuple[str, ...]:
    """Return a tuple of texts, 256 at most."""
    if not isinstance(value, (tuple, list)):
        raise InvalidAgentError(field, f"{field}: must be a tuple or list of strings, got {type_name(value)}")
    _check_entries(field, len(value))
    return tuple(_text(f"{field}[{index}]", item) for index, item in enumerate(value))


def _entries(field: str, value: object) -> FrozenDict[str, str]:
    """Return an immutable mapping of strings to strings, with at most 256 entries."""
    if not isinstance(value, Mapping):
        raise InvalidAgentError(field, f"{field}: must be a dict of strings, got {type_name(value)}")
    _check_entries(field, len(value))
    checked = {}
    for key, item in value.items():
        name = _text(f"{field} key", key)
        checked[name] = _text(f"{field}['{printable(name, 60)}']", item)
    return FrozenDict(checked)


def _instant(field: str, value: object) -> datetime | None:
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


def _number(field: str, value: object) -> int:
    """Return an int from 0 to 2**63 - 1."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidAgentError(field, f"{field}: must be an int, got {type_name(value)}")
    if value < 0:
        raise InvalidAgentError(field, f"{field}: must not be negative")
    if value > MAX_NUMBER:
        raise InvalidAgentError(field, f"{field}: must be at most 2**63 - 1, got {shown_number(value)}")
    return value


def _status(field: str, value: object) -> AgentStatus:
    found = STATUSES.get(str.__str__(value)) if isinstance(value, str) else None
    if found is None:
        got = f"'{printable(value, 60)}'" if isinstance(value, str) else type_name(value)
        raise InvalidAgentError(field, f"{field}: must be one of {', '.join(STATUSES)}, got {got}")
    return found


def _plain_text(field: str, value: object) -> str:
    # Store an instance of a subclass, such as an enum member, as its plain text.
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


_CHECK_OF: Final[Mapping[Kind, Callable[[str, object], Any]]] = {
    Kind.TEXT: _text,
    Kind.TEXTS: _texts,
    Kind.STATUS: _status,
    Kind.INSTANT: _instant,
    Kind.NUMBER: _number,
    Kind.ENTRIES: _entries,
    Kind.INCARNATION: lambda *_: 0,  # The store sets it.
}
_CHECKS: Final[Mapping[str, Callable[[str, object], Any]]] = {
    **{field.name: _CHECK_OF[field.kind] for field in FIELDS},
    "id": lambda _, value: valid_id(value),
}
_CHANGE_CHECKS: Final = {name: _CHECKS[name] for name in CHANGEABLE}

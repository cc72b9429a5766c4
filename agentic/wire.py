"""The JSON record of an agent, which the Go original shares: how it is written, and read whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from agentic.agent import FIELDS, AgentInfo, Kind, status_of
from agentic.clock import NEVER, format_instant, parse_instant
from agentic.frozen import FrozenDict

MAX_DEPTH: Final = 64
"""How deeply objects and arrays may be nested in a record, the record itself included."""

MAX_STORED_BYTES: Final = 128 * 1024
"""How long a record of another writer may be; this library writes 64 KiB at most."""


class CorruptRecord(ValueError):
    """A stored record that is no agent; the message says why."""


# --- written ---

# Fields are left out that equal their default. `UNSET` is the default of those that are always written.
_Record: Final[Any] = msgspec.defstruct(
    "_Record",
    [(field.name, Any, field.default if field.omit_empty else msgspec.UNSET) for field in FIELDS],
    omit_defaults=True,
    gc=False,
)
_OMITTED: Final = {field.name for field in FIELDS if field.omit_empty}
_ENTRIES: Final = [(field.name, field.default) for field in FIELDS if field.kind is Kind.ENTRIES]


def encode_agent(agent: AgentInfo) -> bytes:
    """Return the record's JSON; an agent that was never stamped gets the year 1, as in Go."""
    return _encoded(agent, format_instant(agent.last_heartbeat or NEVER))


def encode_to_stamp(agent: AgentInfo) -> bytes:
    """Return the record's JSON for a store that stamps it: an agent without a heartbeat has the empty text there."""
    return _encoded(agent, "" if agent.last_heartbeat is None else format_instant(agent.last_heartbeat))


def encode_field(name: str, value: object) -> bytes:
    """Return a field's JSON, or nothing where the record leaves it out."""
    return msgspec.json.encode(value) if value or name not in _OMITTED else b""


def _encoded(agent: AgentInfo, last_heartbeat: str) -> bytes:
    record = _Record(*astuple(agent))
    record.last_heartbeat = last_heartbeat
    for name, empty in _ENTRIES:  # Defaults are compared by identity, and two empty mappings are not identical.
        if not getattr(record, name):
            setattr(record, name, empty)
    return msgspec.json.encode(record)


# --- read; `lua/json.lua` accepts and refuses the same records ---

_LOOSE: Final[Mapping[Kind, tuple[Any, Any]]] = {
    Kind.TEXT: (str | None, ""),
    Kind.TEXTS: (tuple[str, ...] | None, ()),
    Kind.STATUS: (str | None, ""),
    Kind.INSTANT: (str | None, ""),
    Kind.NUMBER: (int | None, 0),
    Kind.ENTRIES: (dict[str, Any] | None, FrozenDict()),
}
"""What any writer may have left in a field, and what stands for null."""

_NULLS: Final = [_LOOSE[field.kind][1] for field in FIELDS]
_ForeignAgent: Final = msgspec.defstruct(
    "_ForeignAgent",
    [
        ("id", str),
        *(
            (field.name, _LOOSE[field.kind][0], _NULLS[at] if field.default is None else field.default)
            for at, field in enumerate(FIELDS)
            if field.name != "id"
        ),
    ],
)
_READ: Final[Mapping[Kind, Callable[[Any], Any]]] = {
    Kind.STATUS: status_of,
    Kind.INSTANT: lambda text: parse_instant(text) if text else NEVER,
    Kind.ENTRIES: lambda entries: {key: _as_text(value) for key, value in entries.items()},
}
_READERS: Final = [(at, _READ[field.kind]) for at, field in enumerate(FIELDS) if field.kind in _READ]

_decode_own = msgspec.json.Decoder(AgentInfo).decode
_decode_any = msgspec.json.Decoder().decode


def decode_agent(record: bytes | str) -> AgentInfo:
    """Return the agent that a record's JSON describes, whoever wrote it.

    Unknown fields are ignored; an unknown or empty status is `UNKNOWN`; a time is rounded to microseconds and put in
    UTC, an absent one is the year 1; `null` stands for an empty value. Of a name written twice the last one counts.

    Raises:
        CorruptRecord: It is not a JSON object in UTF-8, has no id, has a field of a type that no writer gives it, is
            longer than 128 KiB, or nested more than 64 levels deep.
    """
    if len(record) > MAX_STORED_BYTES:
        raise CorruptRecord(f"it is longer than {MAX_STORED_BYTES} bytes")
    try:
        agent = _decode_own(record)
    except msgspec.ValidationError:
        return _decode_tolerantly(record)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(str(error)) from error
    if agent.last_heartbeat is None or agent.last_heartbeat.tzinfo is not UTC:
        return _decode_tolerantly(record)
    return agent


def _decode_tolerantly(record: bytes | str) -> AgentInfo:
    try:
        # As a whole first: a typed decoder passes over what it does not know, and does not check it.
        whole = _decode_any(record if isinstance(record, str) else record.decode())
        if _is_too_deep(whole):
            raise CorruptRecord(f"it is nested more than {MAX_DEPTH} levels deep")
        found = msgspec.convert(whole, _ForeignAgent)
        values: list[Any] = [*astuple(found)]
        if None in values:
            values = [null if value is None else value for value, null in zip(values, _NULLS, strict=True)]
        for at, read in _READERS:
            values[at] = read(values[at])
        return AgentInfo(*values)
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(str(error)) from error


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _children(value: object) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class Pulse(msgspec.Struct, gc=False):
    """As much of an agent as a sweep needs to pass over it.

    Half the time of `decode_agent`, which has to read the record before a sweep changes it: other fields are not looked
    at.
    """

    id: str
    status: str | None = None
    last_heartbeat: datetime | None = None


class _Written(msgspec.Struct):
    last_heartbeat: msgspec.Raw = msgspec.Raw()


_decode_pulse = msgspec.json.Decoder(Pulse).decode
_decode_written = msgspec.json.Decoder(_Written).decode


def decode_pulse(record: bytes) -> Pulse:
    """Return the pulse of a record, whoever wrote it.

    Raises:
        CorruptRecord: As `decode_agent` does, for what it looks at.
    """
    try:
        pulse = _decode_pulse(record)
        if pulse.last_heartbeat is not None and pulse.last_heartbeat.tzinfo is UTC:
            return pulse
    except (ValueError, RecursionError):
        pass  # Not as this library writes it: read it as a whole.
    agent = decode_agent(record)
    return Pulse(agent.id, agent.status, agent.last_heartbeat)


def heartbeat_as_written(record: bytes) -> bytes:
    """Return the JSON of a record's `last_heartbeat`, byte for byte; empty where it has none."""
    return bytes(_decode_written(record).last_heartbeat)

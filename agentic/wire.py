"""Encode and decode the JSON record of an agent. The Go original, and other writers, use the same format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec.structs import astuple, replace

from agentic.agent import FIELDS, AgentInfo, Drain, Kind, status_of, stored_values
from agentic.clock import NEVER, format_instant, parse_instant
from agentic.frozen import FrozenDict
from agentic.incarnations import END, LOWEST

MAX_DEPTH: Final = 64
"""The deepest nesting of objects and arrays in a record, counting the record itself."""

MAX_STORED_BYTES: Final = 128 * 1024
"""The longest record that is read. Other writers may exceed the 64 KiB that this library writes at most."""


class CorruptRecord(ValueError):
    """A stored record that is not a valid agent; the message states the reason."""


UNREADABLE: Final = Drain("the stored order cannot be read: drain the agent again, or resume it", "", NEVER)
"""Stands for a damaged order: its agent stays out of rotation, as an operator wanted."""


# --- encode ---

# Fields equal to their default are omitted. The default `UNSET` makes sure that a field is always written.
_Record: Final[Any] = msgspec.defstruct(
    "_Record",
    [(field.name, Any, field.default if field.omit_empty else msgspec.UNSET) for field in FIELDS],
    omit_defaults=True,
    gc=False,
)
_OMITTED: Final = {field.name for field in FIELDS if field.omit_empty}
_ENTRIES: Final = [(field.name, field.default) for field in FIELDS if field.kind is Kind.ENTRIES]


def encode_agent(agent: AgentInfo) -> bytes:
    """Return the record as JSON. A `last_heartbeat` of None becomes the year 1, as in Go."""
    return _encoded(agent, format_instant(agent.last_heartbeat or NEVER))


def encode_to_stamp(agent: AgentInfo) -> bytes:
    """Return the record as JSON for a store that sets the time and the incarnation.

    A `last_heartbeat` of None becomes an empty string; the incarnation is left out.
    """
    unnumbered = replace(agent, incarnation=0) if agent.incarnation else agent
    return _encoded(unnumbered, "" if agent.last_heartbeat is None else format_instant(agent.last_heartbeat))


def encode_field(name: str, value: object) -> bytes:
    """Return a field as JSON; empty if the record omits it."""
    return msgspec.json.encode(value) if value or name not in _OMITTED else b""


def _encoded(agent: AgentInfo, last_heartbeat: str) -> bytes:
    record = _Record(*stored_values(agent))
    record.last_heartbeat = last_heartbeat
    for name, empty in _ENTRIES:  # msgspec compares these defaults by identity.
        if not getattr(record, name):
            setattr(record, name, empty)
    return msgspec.json.encode(record)


# --- decode; `lua/json.lua` accepts and rejects the same records ---

_LOOSE: Final[Mapping[Kind, tuple[Any, Any]]] = {
    Kind.TEXT: (str | None, ""),
    Kind.TEXTS: (tuple[str, ...] | None, ()),
    Kind.STATUS: (str | None, ""),
    Kind.INSTANT: (str | None, ""),
    Kind.NUMBER: (int | None, 0),
    Kind.ENTRIES: (dict[str, Any] | None, FrozenDict()),
    Kind.INCARNATION: (Any, 0),
}
"""By kind: the types that any writer may store in a field, and the value that replaces null."""

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
    Kind.INCARNATION: lambda number: number if type(number) is int and LOWEST <= number < END else 0,
}
_READERS: Final = [(at, _READ[field.kind]) for at, field in enumerate(FIELDS) if field.kind in _READ]

_decode_own = msgspec.json.Decoder(AgentInfo).decode
_decode_any = msgspec.json.Decoder().decode
_decode_drain = msgspec.json.Decoder(Drain).decode


def decode_agent(record: bytes | str) -> AgentInfo:
    """Decode a record from any writer.

    Unknown fields are ignored. An unknown or empty status becomes `UNKNOWN`. A time is converted to UTC and rounded to
    microseconds; a missing one becomes the year 1. `null` becomes an empty value. If a name is repeated, the last value
    is used. An incarnation that is none becomes 0.

    Raises:
        CorruptRecord: It is not a JSON object in UTF-8, has no id, has a field of the wrong type, exceeds 128 KiB, or
            is nested more than 64 levels deep.
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
    if agent.incarnation and not LOWEST <= agent.incarnation < END:
        return _decode_tolerantly(record)
    if agent.draining is not None or agent.claimed:  # Fields of another program.
        return _decode_tolerantly(record)
    return agent


def decode_drain(stored: bytes) -> Drain:
    """Decode an order to drain an agent, as `encode_order` and the scripts write it; `UNREADABLE` if it is not one."""
    try:
        return _decode_drain(stored)
    except (ValueError, RecursionError):
        return UNREADABLE


def encode_order(reason: str, by: str) -> bytes:
    """Return the beginning of the JSON of a `Drain`, to which the store adds its times and the closing brace."""
    return msgspec.json.encode({"reason": reason, "by": by})[:-1]


def _decode_tolerantly(record: bytes | str) -> AgentInfo:
    try:
        # Decode the whole record first, because a typed decoder skips unknown fields without checking them.
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
    """The fields that decide whether a sweep can skip an agent.

    Decoding them takes half the time of `decode_agent`, but does not check the other fields: decode the whole record
    before changing it.
    """

    id: str
    status: str | None = None
    last_heartbeat: datetime | None = None


class _Written(msgspec.Struct):
    last_heartbeat: msgspec.Raw = msgspec.Raw()


_decode_pulse = msgspec.json.Decoder(Pulse).decode
_decode_written = msgspec.json.Decoder(_Written).decode


def decode_pulse(record: bytes) -> Pulse:
    """Decode the pulse of a record from any writer.

    Raises:
        CorruptRecord: As in `decode_agent`, for the fields that it reads.
    """
    try:
        pulse = _decode_pulse(record)
        if pulse.last_heartbeat is not None and pulse.last_heartbeat.tzinfo is UTC:
            return pulse
    except (ValueError, RecursionError):
        pass  # Not written by this library: decode it as a whole.
    agent = decode_agent(record)
    return Pulse(agent.id, agent.status, agent.last_heartbeat)


def heartbeat_as_written(record: bytes) -> bytes:
    """Return the JSON of a record's `last_heartbeat`, byte for byte; empty if it has none."""
    return bytes(_decode_written(record).last_heartbeat)

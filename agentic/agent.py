"""What an agent is, what is accepted as one, and its JSON form, which the Go original shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TypedDict

import msgspec
import msgspec.structs

from agentic.clock import NEVER, format_instant, parse_instant, to_utc
from agentic.errors import InvalidAgentError

MAX_ID_BYTES: Final = 512
MAX_RECORD_BYTES: Final = 64 * 1024
_MAX_LOAD: Final = 2**63 - 1
_SURELY_SMALL: Final = 10_000
"""Texts and characters of them; JSON takes at most six bytes for either, so their record is short enough."""


class AgentStatus(StrEnum):
    """What an agent says of itself, and what a reaper says of a silent one."""

    AVAILABLE = "available"
    BUSY = "busy"
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """Read in place of a value that somebody else wrote; the stored value itself is kept."""

    @classmethod
    def _missing_(cls, value: object) -> AgentStatus | None:
        return cls.UNKNOWN if isinstance(value, str) else None


class AgentInfo(msgspec.Struct, frozen=True, gc=False):
    """One agent as the registry knows it.

    Constructing one checks nothing; `AgentRegistry.register` checks every field.

    Attributes:
        id: Unique in the registry; 1 to 512 bytes of UTF-8.
        name: What people call it.
        capabilities: What it can do.
        status: `AVAILABLE` unless said otherwise.
        last_heartbeat: An aware instant. None when registering: the store stamps its own time. Never None when read.
        current_load: The work it has, 0 to 2**63 - 1.
        max_load: The work it can take at once, 0 to 2**63 - 1; 0 means unlimited.
        metadata: Whatever else belongs to it, text to text.
    """

    id: str
    name: str = ""
    capabilities: tuple[str, ...] = ()
    status: AgentStatus = AgentStatus.AVAILABLE
    last_heartbeat: datetime | None = None
    current_load: int = 0
    max_load: int = 0
    metadata: dict[str, str] = {}

    def stamped(self, now: datetime) -> AgentInfo:
        """Return the agent as a store whose time is `now` keeps it: never heard from later than that."""
        if self.last_heartbeat is None or self.last_heartbeat > now:
            return msgspec.structs.replace(self, last_heartbeat=now)
        return self


class AgentChanges(TypedDict, total=False):
    """The fields that `AgentRegistry.update` can change, each left alone unless given."""

    name: str
    capabilities: tuple[str, ...]
    status: AgentStatus
    current_load: int
    max_load: int
    metadata: dict[str, str]


# --- what is accepted ---


def valid_id(agent_id: object) -> str:
    """Return the id as a plain `str`.

    Raises:
        InvalidAgentError: It is empty, no string, longer than 512 bytes of UTF-8, or holds a lone surrogate.
    """
    if type(agent_id) is str and 0 < len(agent_id) <= MAX_ID_BYTES and agent_id.isascii():
        return agent_id  # Most are, and each heartbeat comes by here.
    text = _text("id", agent_id)
    if not text:
        raise InvalidAgentError("id", "agent ID is required")
    if len(text) * 4 > MAX_ID_BYTES and (size := len(text.encode())) > MAX_ID_BYTES:
        raise InvalidAgentError("id", f"id: must be at most {MAX_ID_BYTES} bytes of UTF-8, got {size}")
    return text


def valid_agent(agent: object) -> AgentInfo:
    """Return a checked copy that shares nothing mutable with the caller's: plain types, times in UTC.

    Raises:
        InvalidAgentError: A field is wrong, named in the message, or the record would be longer than 64 KiB.
    """
    if not isinstance(agent, AgentInfo):
        raise InvalidAgentError("agent", f"agent: must be an AgentInfo, got {type(agent).__name__}")
    plain = _checked_if_plain(agent)
    if plain is not None:
        return plain
    checked = AgentInfo(
        id=valid_id(agent.id),
        name=_text("name", agent.name),
        capabilities=_capabilities("capabilities", agent.capabilities),
        status=_status("status", agent.status),
        last_heartbeat=_instant("last_heartbeat", agent.last_heartbeat),
        current_load=_load("current_load", agent.current_load),
        max_load=_load("max_load", agent.max_load),
        metadata=_metadata("metadata", agent.metadata),
    )
    check_size(checked)
    return checked


def _checked_if_plain(agent: AgentInfo) -> AgentInfo | None:
    """Return a checked copy if no field needs a closer look: its own type, ASCII, far from any limit. Most are so."""
    if type(agent) is not AgentInfo or type(agent.status) is not AgentStatus or agent.last_heartbeat is not None:
        return None
    capabilities, metadata = agent.capabilities, agent.metadata
    if type(capabilities) is not tuple or type(metadata) is not dict:
        return None
    load, most = agent.current_load, agent.max_load
    if type(load) is not int or type(most) is not int or not (0 <= load <= _MAX_LOAD and 0 <= most <= _MAX_LOAD):
        return None
    texts = [agent.id, agent.name, *capabilities]
    if metadata:
        texts += metadata
        texts += metadata.values()
    for text in texts:
        if type(text) is not str:
            return None
    joined = "".join(texts)
    if not joined.isascii() or not 0 < len(agent.id) <= MAX_ID_BYTES or len(joined) + len(texts) > _SURELY_SMALL:
        return None
    return msgspec.structs.replace(agent, metadata=metadata.copy())


def valid_changes(changes: Mapping[str, object]) -> AgentChanges:
    """Return a checked copy of the fields to change.

    Raises:
        InvalidAgentError: A value is wrong, named in the message.
        TypeError: A name is none of the fields that can change.
    """
    checked: dict[str, object] = {}
    for name, value in changes.items():
        if name not in _CHECKS:
            raise TypeError(f"update() cannot change {name!r}, only {', '.join(_CHECKS)}")
        checked[name] = _CHECKS[name](name, value)
    return checked  # type: ignore[return-value]


def check_size(agent: AgentInfo) -> None:
    """Refuse an agent whose record would be longer than 64 KiB.

    Raises:
        InvalidAgentError: It would.
    """
    size = len(encode_agent(agent))
    if size > MAX_RECORD_BYTES:
        raise too_large(size)


def too_large(size: int) -> InvalidAgentError:
    """Return the error for a record of `size` bytes."""
    return InvalidAgentError("agent", f"agent: its record must be at most {MAX_RECORD_BYTES} bytes of JSON, got {size}")


def _text(field: str, value: object) -> str:
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        raise InvalidAgentError(field, f"{field}: must be a string, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidAgentError(field, f"{field}: holds a lone surrogate at position {error.start}") from None
    # A subclass (an enum member, say) is stored as its plain text.
    return value if type(value) is str else str.__str__(value)


def _capabilities(field: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)):
        raise InvalidAgentError(field, f"{field}: must be a tuple or list of strings, got {type(value).__name__}")
    return tuple(_text(f"{field}[{index}]", item) for index, item in enumerate(value))


def _status(field: str, value: object) -> AgentStatus:
    status = AgentStatus(value) if isinstance(value, str) else None
    if status is None or status != value:
        raise InvalidAgentError(field, f"{field}: must be one of {', '.join(AgentStatus)}, got {value!r}")
    return status


def _instant(field: str, value: object) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidAgentError(field, f"{field}: must be a datetime or None, got {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidAgentError(field, f"{field}: must be aware (have a tzinfo), got the naive {value.isoformat()}")
    return to_utc(value)


def _load(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidAgentError(field, f"{field}: must be an int, got {type(value).__name__}")
    if value < 0:
        raise InvalidAgentError(field, f"{field}: must not be negative")
    if value > _MAX_LOAD:
        raise InvalidAgentError(
            field, f"{field}: must be at most 2**63 - 1, got an integer of {value.bit_length()} bits"
        )
    return int(value)


def _metadata(field: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidAgentError(field, f"{field}: must be a dict of strings, got {type(value).__name__}")
    return {_text(f"{field} key", key): _text(f"{field}[{key!r}]", item) for key, item in value.items()}


_CHECKS: Final[dict[str, Callable[[str, object], object]]] = {
    "name": _text,
    "capabilities": _capabilities,
    "status": _status,
    "current_load": _load,
    "max_load": _load,
    "metadata": _metadata,
}


# --- the JSON form ---
# Fields and order are the Go original's, then `metadata`; `capabilities` and `metadata` are left out when empty.


class _Record(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    id: str
    name: str
    capabilities: tuple[str, ...] = ()
    status: AgentStatus
    last_heartbeat: str
    current_load: int
    max_load: int
    metadata: dict[str, str] = {}


def _encoded(agent: AgentInfo, last_heartbeat: str) -> bytes:
    return msgspec.json.encode(
        _Record(
            id=agent.id,
            name=agent.name,
            capabilities=agent.capabilities,
            status=agent.status,
            last_heartbeat=last_heartbeat,
            current_load=agent.current_load,
            max_load=agent.max_load,
            metadata=agent.metadata,
        )
    )


def encode_agent(agent: AgentInfo) -> bytes:
    """Return the record's JSON; an agent that was never stamped gets the year 1, as in Go."""
    return _encoded(agent, format_instant(agent.last_heartbeat or NEVER))


def encode_to_stamp(agent: AgentInfo) -> bytes:
    """Return the record's JSON for a store that stamps it: an agent without a heartbeat has the empty text there."""
    return _encoded(agent, "" if agent.last_heartbeat is None else format_instant(agent.last_heartbeat))


class CorruptRecord(ValueError):
    """A stored record that is no agent; the message says why."""


class _ForeignAgent(msgspec.Struct):
    """The same fields as loosely as any writer may have left them."""

    id: str
    name: str | None = None
    capabilities: tuple[str, ...] | None = None
    status: str | None = "available"
    last_heartbeat: str | None = None
    current_load: int | None = None
    max_load: int | None = None
    metadata: dict[str, Any] | None = None


_decode_own = msgspec.json.Decoder(AgentInfo).decode
_decode_foreign = msgspec.json.Decoder(_ForeignAgent).decode


def decode_agent(record: bytes | str) -> AgentInfo:
    """Return the agent that a record's JSON describes, whoever wrote it.

    Unknown fields are passed over; an unknown or empty status is `UNKNOWN`; a time is rounded to microseconds and put
    in UTC, an absent one is the year 1; `null` stands for an empty value.

    Raises:
        CorruptRecord: It is no JSON object, has no id, or a field has a type that no writer gives it.
    """
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
        found = _decode_foreign(record)
        return AgentInfo(
            id=found.id,
            name=found.name or "",
            capabilities=found.capabilities or (),
            status=AgentStatus(found.status or ""),
            last_heartbeat=parse_instant(found.last_heartbeat) if found.last_heartbeat else NEVER,
            current_load=found.current_load or 0,
            max_load=found.max_load or 0,
            metadata={key: _as_text(value) for key, value in (found.metadata or {}).items()},
        )
    except (ValueError, RecursionError) as error:
        raise CorruptRecord(str(error)) from error


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

"""What an agent is, what is accepted as one, and the JSON that is written of it, which the Go original shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import msgspec
import msgspec.structs

from agentic.clock import NEVER, format_instant
from agentic.errors import InvalidAgentError
from agentic.frozen import FrozenDict
from agentic.text import printable, type_name
from agentic.validation import (
    MAX_ENTRIES,
    MAX_ID_BYTES,
    MAX_LOAD,
    MAX_RECORD_BYTES,
    capabilities,
    instant,
    load,
    metadata,
    text,
    too_large,
    valid_id,
)

_SURELY_SMALL: Final = 10_000
"""Strings plus characters: JSON needs at most 6 bytes for each, so below this a record is surely small enough."""

_set: Final = msgspec.structs.force_setattr
_NO_METADATA: Final = FrozenDict[str, str]()


class AgentStatus(StrEnum):
    """What an agent says of itself, and what a reaper says of a silent one."""

    AVAILABLE = "available"
    BUSY = "busy"
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """Read in place of a value that somebody else wrote; the stored value itself is kept."""


StatusName = Literal["available", "busy", "offline", "unknown"]
"""A status as its plain text, which stands for the member of `AgentStatus` wherever a caller gives one."""


class AgentInfo(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One agent as the registry knows it.

    Immutable, and hashable where its fields are: a list of capabilities becomes a tuple, the text of a status its
    `AgentStatus`, a mapping of metadata an immutable copy. Constructing one checks nothing else;
    `AgentRegistry.register` checks every field. Pydantic, and so FastAPI, takes it as the type of a field or a
    response.

    Attributes:
        id: Unique in the registry; 1 to 512 bytes of UTF-8.
        name: What people call it.
        capabilities: What it can do; at most 256.
        status: `AVAILABLE` unless said otherwise.
        last_heartbeat: An aware instant. None when registering: the store stamps its own time. Never None when read.
        current_load: The work it has, 0 to 2**63 - 1.
        max_load: The work it can take at once, 0 to 2**63 - 1; 0 means unlimited.
        metadata: Whatever else belongs to it, text to text; at most 256 entries.
    """

    id: str
    name: str = ""
    capabilities: tuple[str, ...] = ()
    status: AgentStatus = AgentStatus.AVAILABLE
    last_heartbeat: datetime | None = None
    current_load: int = 0
    max_load: int = 0
    metadata: Mapping[str, str] = _NO_METADATA

    if TYPE_CHECKING:
        # What a caller may give is more than what is read.
        def __init__(
            self,
            id: str,  # noqa: A002
            name: str = "",
            capabilities: Sequence[str] = (),
            status: AgentStatus | StatusName = AgentStatus.AVAILABLE,
            last_heartbeat: datetime | None = None,
            current_load: int = 0,
            max_load: int = 0,
            metadata: Mapping[str, str] = _NO_METADATA,
        ) -> None: ...

    def __post_init__(self) -> None:
        # Called for each agent that is read: what is usual is told by its exact type.
        metadata = self.metadata
        if type(metadata) is not FrozenDict and (type(metadata) is dict or isinstance(metadata, Mapping)):
            _set(self, "metadata", FrozenDict(metadata))
        if type(self.capabilities) is not tuple and isinstance(self.capabilities, list):
            _set(self, "capabilities", tuple(self.capabilities))
        if type(self.status) is str:
            _set(self, "status", _STATUSES.get(self.status, self.status))

    def to_dict(self) -> dict[str, Any]:
        """Return every field in the types of JSON: texts, ints, a list and a dict; the instant as ISO 8601 in UTC."""
        return dict(msgspec.to_builtins(self), capabilities=list(self.capabilities))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Callable[[object], Any]) -> Any:
        """Tell pydantic how to read, write and describe an agent."""
        from agentic.pydantic_schema import agent_schema  # noqa: PLC0415  needs pydantic, which its caller has

        return agent_schema(cls, handler)

    def stamped(self, now: datetime) -> AgentInfo:
        """Return the agent as a store whose time is `now` keeps it: never heard from later than that."""
        if self.last_heartbeat is None or self.last_heartbeat > now:
            return msgspec.structs.replace(self, last_heartbeat=now)
        return self


class AgentChanges(TypedDict, total=False):
    """The fields that `AgentRegistry.update` can change, each left alone unless given."""

    name: str
    capabilities: Sequence[str]
    status: AgentStatus | StatusName
    current_load: int
    max_load: int
    metadata: Mapping[str, str]


# --- what is accepted ---


def valid_agent(agent: object) -> AgentInfo:
    """Return the agent with every field checked: in plain types, times in UTC.

    Raises:
        InvalidAgentError: A field is wrong, named in the message, or the record would be longer than 64 KiB.
    """
    if not isinstance(agent, AgentInfo):
        raise InvalidAgentError("agent", f"agent: must be an AgentInfo, got {type_name(agent)}")
    if _is_plain(agent):
        return agent
    checked = AgentInfo(
        id=valid_id(agent.id),
        name=text("name", agent.name),
        capabilities=capabilities("capabilities", agent.capabilities),
        status=_status("status", agent.status),
        last_heartbeat=instant("last_heartbeat", agent.last_heartbeat),
        current_load=load("current_load", agent.current_load),
        max_load=load("max_load", agent.max_load),
        metadata=metadata("metadata", agent.metadata),
    )
    check_size(checked)
    return checked


def _is_plain(agent: AgentInfo) -> bool:
    """Tell whether no field needs a closer look: its own type, ASCII, far from any limit. Most agents are so."""
    if type(agent) is not AgentInfo or type(agent.status) is not AgentStatus or agent.last_heartbeat is not None:
        return False
    if type(agent.capabilities) is not tuple or type(agent.metadata) is not FrozenDict:
        return False
    if len(agent.capabilities) > MAX_ENTRIES or len(agent.metadata) > MAX_ENTRIES:
        return False
    for number in (agent.current_load, agent.max_load):
        if type(number) is not int or not 0 <= number <= MAX_LOAD:
            return False
    texts = [agent.id, agent.name, *agent.capabilities]
    if agent.metadata:
        texts += agent.metadata
        texts += agent.metadata.values()
    size = len(texts)
    for each in texts:
        if type(each) is not str or not each.isascii():
            return False
        size += len(each)
    return 0 < len(agent.id) <= MAX_ID_BYTES and size <= _SURELY_SMALL


def valid_changes(changes: Mapping[str, object]) -> AgentChanges:
    """Return a checked copy of the fields to change.

    Raises:
        InvalidAgentError: A value is wrong, named in the message.
        TypeError: A name is none of the fields that can change.
    """
    checked: dict[str, object] = {}
    for name, value in changes.items():
        if name not in _CHECKS:
            raise TypeError(f"update() cannot change '{printable(name, 60)}', only {', '.join(_CHECKS)}")
        checked[name] = _CHECKS[name](name, value)
    _check_characters(checked)
    return checked  # type: ignore[return-value]


def check_size(agent: AgentInfo) -> None:
    """Refuse an agent whose record would be longer than 64 KiB.

    Raises:
        InvalidAgentError: It would.
    """
    _check_characters({name: getattr(agent, name) for name in agent.__struct_fields__})
    size = len(encode_agent(agent))
    if size > MAX_RECORD_BYTES:
        raise too_large(size)


def _check_characters(fields: Mapping[str, object]) -> None:
    """Refuse fields with more characters than a record may have bytes, before anything is made of all of them."""
    size = 0
    for value in fields.values():
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, tuple):
            size += sum(map(len, value))
        elif isinstance(value, Mapping):
            size += sum(map(len, value)) + sum(map(len, value.values()))
    if size > MAX_RECORD_BYTES:
        raise too_large(size)


def _status(field: str, value: object) -> AgentStatus:
    found = _STATUSES.get(str.__str__(value)) if isinstance(value, str) else None
    if found is None:
        got = f"'{printable(value, 60)}'" if isinstance(value, str) else type_name(value)
        raise InvalidAgentError(field, f"{field}: must be one of {', '.join(_STATUSES)}, got {got}")
    return found


_STATUSES: Final = {status.value: status for status in AgentStatus}


def status_of(stored: str) -> AgentStatus:
    """Return the status that a stored text stands for: `UNKNOWN` where this library does not write it."""
    return _STATUSES.get(stored, AgentStatus.UNKNOWN)


_CHECKS: Final[dict[str, Callable[[str, object], object]]] = {
    "name": text,
    "capabilities": capabilities,
    "status": _status,
    "current_load": load,
    "max_load": load,
    "metadata": metadata,
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
    metadata: Mapping[str, str] = _NO_METADATA


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
            metadata=agent.metadata or _NO_METADATA,
        )
    )


def encode_agent(agent: AgentInfo) -> bytes:
    """Return the record's JSON; an agent that was never stamped gets the year 1, as in Go."""
    return _encoded(agent, format_instant(agent.last_heartbeat or NEVER))


def encode_to_stamp(agent: AgentInfo) -> bytes:
    """Return the record's JSON for a store that stamps it: an agent without a heartbeat has the empty text there."""
    return _encoded(agent, "" if agent.last_heartbeat is None else format_instant(agent.last_heartbeat))

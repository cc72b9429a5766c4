"""What an agent is: its fields, from which checks, the JSON record, SQL columns and the Lua scripts are derived."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, TypedDict, get_args, get_type_hints

import msgspec
import msgspec.structs

from agentic.frozen import FrozenDict

OMIT_EMPTY: Final = "left out of a record's JSON when empty"
"""Marks a field, in its annotation."""

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

STATUSES: Final = {status.value: status for status in AgentStatus}


def status_of(stored: str) -> AgentStatus:
    """Return the status that a stored text stands for: `UNKNOWN` where this library does not write it."""
    return STATUSES.get(stored, AgentStatus.UNKNOWN)


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
    capabilities: Annotated[tuple[str, ...], OMIT_EMPTY] = ()
    status: AgentStatus = AgentStatus.AVAILABLE
    last_heartbeat: datetime | None = None
    current_load: int = 0
    max_load: int = 0
    metadata: Annotated[Mapping[str, str], OMIT_EMPTY] = _NO_METADATA

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
            _set(self, "status", STATUSES.get(self.status, self.status))

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


# --- the table of fields ---


class Kind(StrEnum):
    """What a field holds."""

    TEXT = "text"
    TEXTS = "texts"
    STATUS = "status"
    INSTANT = "instant"
    NUMBER = "number"
    ENTRIES = "entries"


_KIND_OF: Final[Mapping[Any, Kind]] = {
    str: Kind.TEXT,
    tuple[str, ...]: Kind.TEXTS,
    AgentStatus: Kind.STATUS,
    datetime | None: Kind.INSTANT,
    int: Kind.NUMBER,
    Mapping[str, str]: Kind.ENTRIES,
}


class Field(NamedTuple):
    """One field of `AgentInfo`.

    Attributes:
        name: As in `AgentInfo`, in a record and in a table.
        kind: What it holds.
        default: `msgspec.NODEFAULT` where it must be given.
        omit_empty: Whether a record's JSON leaves it out when it is empty.
    """

    name: str
    kind: Kind
    default: Any
    omit_empty: bool


def _fields() -> tuple[Field, ...]:
    types = get_type_hints(AgentInfo, include_extras=True)
    plain = get_type_hints(AgentInfo)
    return tuple(
        Field(field.name, _KIND_OF[plain[field.name]], field.default, OMIT_EMPTY in get_args(types[field.name]))
        for field in msgspec.structs.fields(AgentInfo)
    )


FIELDS: Final = _fields()
"""Every field, in the order in which it is written: first the seven of the Go original."""

HEARTBEAT: Final = AgentInfo.__struct_fields__.index("last_heartbeat")
"""The place of `last_heartbeat`, which each store writes in a form of its own."""

CHANGEABLE: Final = tuple(AgentChanges.__annotations__)
"""The fields that `AgentRegistry.update` can change."""

"""The agent model. Validation, the JSON record, SQL columns and Lua scripts are derived from its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, TypedDict, get_args, get_type_hints

import msgspec
import msgspec.structs

from agentic.frozen import FrozenDict

OMIT_EMPTY: Final = "left out of a record's JSON when empty"
"""Annotates a field."""

_set: Final = msgspec.structs.force_setattr
_NO_METADATA: Final = FrozenDict[str, str]()


class AgentStatus(StrEnum):
    """The status of an agent. The agent sets it; a reaper sets silent agents to `OFFLINE`."""

    AVAILABLE = "available"
    BUSY = "busy"
    OFFLINE = "offline"
    UNKNOWN = "unknown"
    """Returned for a stored value that this library does not know; the stored value is kept."""


StatusName = Literal["available", "busy", "offline", "unknown"]
"""The value of an `AgentStatus` member. Callers can pass it in place of the member."""

STATUSES: Final = {status.value: status for status in AgentStatus}


def status_of(stored: str) -> AgentStatus:
    """Return the status for a stored text: `UNKNOWN` if this library does not know it."""
    return STATUSES.get(stored, AgentStatus.UNKNOWN)


class AgentInfo(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One agent in the registry.

    Immutable, and hashable if its fields are. The constructor converts a list of capabilities to a tuple, the text of a
    status to an `AgentStatus`, and a mapping of metadata to an immutable copy. It checks nothing else;
    `AgentRegistry.register` checks every field. Pydantic and FastAPI accept it as the type of a field or a response.

    Attributes:
        id: Unique in the registry; 1 to 512 bytes in UTF-8.
        name: A name for people.
        capabilities: What the agent can do; at most 256.
        status: `AVAILABLE` by default.
        last_heartbeat: An aware instant. If None in a registration, the store sets its own time. Never None when read.
        current_load: The current amount of work, 0 to 2**63 - 1.
        max_load: The most work at once, 0 to 2**63 - 1; 0 means unlimited.
        metadata: Any other strings, by name; at most 256 entries.
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
        # The constructor accepts more types than the fields have.
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
        # Hot path: runs for each agent that is read. Exact type checks are fastest, so the common types come first.
        metadata = self.metadata
        if type(metadata) is not FrozenDict and (type(metadata) is dict or isinstance(metadata, Mapping)):
            _set(self, "metadata", FrozenDict(metadata))
        if type(self.capabilities) is not tuple and isinstance(self.capabilities, list):
            _set(self, "capabilities", tuple(self.capabilities))
        if type(self.status) is str:
            _set(self, "status", STATUSES.get(self.status, self.status))

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types: strings, ints, a list and a dict; the instant in ISO 8601, in UTC."""
        return dict(msgspec.to_builtins(self), capabilities=list(self.capabilities))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Callable[[object], Any]) -> Any:
        """Return the schema with which pydantic validates, serializes and describes an agent."""
        from agentic.pydantic_schema import agent_schema  # noqa: PLC0415  needs pydantic, which is optional

        return agent_schema(cls, handler)

    def stamped(self, now: datetime) -> AgentInfo:
        """Return the agent with `last_heartbeat` set to `now`, the store's time, if it is None or later than that."""
        if self.last_heartbeat is None or self.last_heartbeat > now:
            return msgspec.structs.replace(self, last_heartbeat=now)
        return self


class AgentChanges(TypedDict, total=False):
    """The fields that `AgentRegistry.update` can change; those not given stay unchanged."""

    name: str
    capabilities: Sequence[str]
    status: AgentStatus | StatusName
    current_load: int
    max_load: int
    metadata: Mapping[str, str]


# --- the table of fields ---


class Kind(StrEnum):
    """The type of a field's value."""

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
        kind: The type of its value.
        default: `msgspec.NODEFAULT` if the field is required.
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
"""All fields, in the order in which they are written: first the seven of the Go original."""

HEARTBEAT: Final = AgentInfo.__struct_fields__.index("last_heartbeat")
"""The index of `last_heartbeat`, which each store writes in its own form."""

CHANGEABLE: Final = tuple(AgentChanges.__annotations__)
"""The fields that `AgentRegistry.update` can change."""

"""The agent model. Validation, the JSON record, SQL columns and Lua scripts are derived from its fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from math import inf
from secrets import token_hex
from socket import gethostname
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    NamedTuple,
    TypedDict,
    Unpack,
    get_args,
    get_type_hints,
)

import msgspec
import msgspec.structs

from agentic.frozen import FrozenDict

OMIT_EMPTY: Final = "left out of a record's JSON when empty"
FILLED_IN: Final = "not in a record: stores fill it in when an agent is read"
"""They annotate a field."""

_set: Final = msgspec.structs.force_setattr
_NO_METADATA: Final = FrozenDict[str, str]()


class Kind(StrEnum):
    """The type of a field's value."""

    TEXT = "text"
    TEXTS = "texts"
    STATUS = "status"
    INSTANT = "instant"
    NUMBER = "number"
    ENTRIES = "entries"
    INCARNATION = "incarnation"
    ANY = "any"
    """Only in records: any JSON value. A nonsensical one is ignored; the record is still valid."""


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


class Drain(msgspec.Struct, frozen=True, gc=False):
    """An operator's order that an agent gets no new work.

    Attributes:
        reason: Why.
        by: Who ordered it; may be empty.
        drained_at: When it was ordered, by the store's clock.
        ends_at: When it ends by itself; None if it lasts until `AgentRegistry.resume`.
    """

    reason: str
    by: str
    drained_at: Annotated[datetime, msgspec.Meta(tz=True)]
    ends_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Callable[[object], Any]) -> Any:
        """Return the schema with which pydantic validates, serializes and describes a drain."""
        from agentic.pydantic_schema import struct_schema  # noqa: PLC0415  needs pydantic, which is optional

        return struct_schema(cls, handler)


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
        unready: Why the agent takes no work now; empty if it is ready.
        incarnation: Which start of the agent registered it; a later one has a higher number. `register` ignores it and
            returns the one that the store gave. 0 if a program wrote the record that does not know incarnations.
        draining: The operator's order under which the agent gets no new work, if there is one. `register` ignores it.
        claimed: How much of `max_load` other programs have reserved; 0, until reservations exist.
    """

    id: str
    name: str = ""
    capabilities: Annotated[tuple[str, ...], OMIT_EMPTY] = ()
    status: AgentStatus = AgentStatus.AVAILABLE
    last_heartbeat: datetime | None = None
    current_load: int = 0
    max_load: int = 0
    metadata: Annotated[Mapping[str, str], OMIT_EMPTY] = _NO_METADATA
    unready: Annotated[str, OMIT_EMPTY] = ""
    incarnation: Annotated[int, OMIT_EMPTY, Kind.INCARNATION] = 0
    draining: Annotated[Drain | None, FILLED_IN] = None
    claimed: Annotated[int, FILLED_IN] = 0

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
            unready: str = "",
            incarnation: int = 0,
            draining: Drain | None = None,
            claimed: int = 0,
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

    @classmethod
    def new(cls, role: str, /, **fields: Unpack[AgentChanges]) -> AgentInfo:
        """Return an agent with an id of its own, `role:host:8 random hex digits`, for one of many instances of a role.

        Args:
            role: Its name as well, unless `name` is given.
            **fields: Any other fields.
        """
        fields.setdefault("name", role)
        return cls(f"{role}:{gethostname()}:{token_hex(4)}", **fields)

    @property
    def ready(self) -> bool:
        """Whether the agent may take work: it is neither offline nor unready nor being drained."""
        return not self.unready and self.status is not AgentStatus.OFFLINE and self.draining is None

    @property
    def free(self) -> float:
        """How much more work the agent may take, at least 0; `math.inf` if `max_load` is 0."""
        return max(0, self.max_load - self.current_load - self.claimed) if self.max_load else inf

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types: strings, ints, a list and a dict; the instant in ISO 8601, in UTC."""
        return dict(msgspec.to_builtins(self), capabilities=list(self.capabilities))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: Callable[[object], Any]) -> Any:
        """Return the schema with which pydantic validates, serializes and describes an agent."""
        from agentic.pydantic_schema import struct_schema  # noqa: PLC0415  needs pydantic, which is optional

        return struct_schema(cls, handler)

    def stamped(self, now: datetime) -> AgentInfo:
        """Return the agent with `last_heartbeat` set to `now`, the store's time, if it is None or later than that."""
        if self.last_heartbeat is None or self.last_heartbeat > now:
            return msgspec.structs.replace(self, last_heartbeat=now)
        return self


class Beat(msgspec.Struct, frozen=True, gc=False):
    """What a heartbeat found.

    Attributes:
        was_offline: Whether the agent was offline; the heartbeat has ended that.
        draining: The operator's order under which the agent gets no new work, if there is one.
        rewritten: Whether a program that does not know all fields has written the record since this start of the agent
            registered it, so that fields may be missing. False for a heartbeat without an incarnation.
    """

    was_offline: bool = False
    draining: Drain | None = None
    rewritten: bool = False


USUAL_BEAT: Final = Beat()


class AgentChanges(TypedDict, total=False):
    """The fields that `AgentRegistry.update` can change; those not given stay unchanged."""

    name: str
    capabilities: Sequence[str]
    status: AgentStatus | StatusName
    current_load: int
    max_load: int
    metadata: Mapping[str, str]
    unready: str


# --- the table of fields ---


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

    def kind(name: str) -> Kind:
        named = [each for each in get_args(types[name]) if isinstance(each, Kind)]
        return named[0] if named else _KIND_OF[plain[name]]

    return tuple(
        Field(field.name, kind(field.name), field.default, OMIT_EMPTY in get_args(types[field.name]))
        for field in msgspec.structs.fields(AgentInfo)
        if FILLED_IN not in get_args(types[field.name])
    )


FIELDS: Final = _fields()
"""All fields that are stored, in the order in which they are written: first the seven of the Go original."""

IN_RECORD: Final = (
    *FIELDS[:-1],
    Field("before_offline", Kind.ANY, "", omit_empty=True),
    FIELDS[-1],
    Field("marked", Kind.ANY, "", omit_empty=True),
)
"""All fields of a record, in their order. `before_offline` is the status that a sweep replaced by `offline`; `marked`
is true while the agent may be drained, so that its heartbeats look for the order."""

HEARTBEAT: Final = AgentInfo.__struct_fields__.index("last_heartbeat")
"""The index of `last_heartbeat`, which each store writes in its own form."""

INCARNATION: Final = AgentInfo.__struct_fields__.index("incarnation")
"""The index of `incarnation`, which stores trust only if they believe it."""


def stored_values(agent: AgentInfo) -> tuple[Any, ...]:
    """Return the values of `FIELDS`."""
    return msgspec.structs.astuple(agent)[: len(FIELDS)]


CHANGEABLE: Final = tuple(AgentChanges.__annotations__)
"""The fields that `AgentRegistry.update` can change."""

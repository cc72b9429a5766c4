"""What is refused, before any I/O and with nothing changed, on every store."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest

from agentic import AgentInfo, AgentRegistry, InvalidAgentError, MemoryRegistry
from agentic.validation import valid_agent

SURROGATE = "\ud800"

WRONG_FIELDS: list[tuple[str, object, str, str]] = [
    ("id", "", "id", "agent ID is required"),
    ("id", None, "id", "must be a string, got NoneType"),
    ("id", b"a", "id", "must be a string, got bytes"),
    ("id", 7, "id", "must be a string, got int"),
    ("id", "a" * 513, "id", "at most 512 bytes of UTF-8, got 513"),
    ("id", "é" * 257, "id", "at most 512 bytes of UTF-8, got 514"),
    ("id", "a" * 2**20, "id", "at most 512 bytes of UTF-8, got 1048576"),
    ("id", "a" + SURROGATE, "id", "lone surrogate at position 1"),
    ("name", None, "name", "must be a string"),
    ("name", SURROGATE, "name", "lone surrogate"),
    ("capabilities", "go", "capabilities", "tuple or list of strings, got str"),
    ("capabilities", None, "capabilities", "tuple or list"),
    ("capabilities", {"go"}, "capabilities", "tuple or list"),
    ("capabilities", ("go", 1), "capabilities[1]", "must be a string, got int"),
    ("capabilities", ("go", None), "capabilities[1]", "must be a string"),
    ("capabilities", (SURROGATE,), "capabilities[0]", "lone surrogate"),
    ("status", "draining", "status", "must be one of available, busy, offline, unknown, got 'draining'"),
    ("status", "", "status", "must be one of"),
    ("status", None, "status", "must be one of"),
    ("status", 1, "status", "must be one of available, busy, offline, unknown, got int"),
    ("status", "BUSY", "status", "must be one of"),
    ("status", "a\nb", "status", r"got 'a\nb'"),
    ("current_load", -1, "current_load", "must not be negative"),
    ("current_load", True, "current_load", "must be an int, got bool"),
    ("current_load", 1.0, "current_load", "must be an int, got float"),
    ("current_load", "1", "current_load", "must be an int, got str"),
    ("max_load", 2**63, "max_load", "at most 2**63 - 1"),
    ("max_load", 10**4000, "max_load", "at most 2**63 - 1"),
    ("max_load", -(2**70), "max_load", "must not be negative"),
    ("metadata", None, "metadata", "must be a dict of strings"),
    ("metadata", [("a", "b")], "metadata", "must be a dict of strings"),
    ("metadata", {"a": 1}, "metadata['a']", "must be a string, got int"),
    ("metadata", {1: "a"}, "metadata key", "must be a string, got int"),
    ("metadata", {SURROGATE: "a"}, "metadata key", "lone surrogate"),
    ("metadata", {"a": SURROGATE}, "metadata['a']", "lone surrogate"),
    ("metadata", {"k\n" * 100: 1}, "metadata['" + r"k\n" * 20 + "...']", "must be a string, got int"),
]


class BrokenZone(tzinfo):
    def utcoffset(self, instant: datetime | None, /) -> timedelta:
        raise RuntimeError("no zone")

    def dst(self, instant: datetime | None, /) -> None: ...

    def tzname(self, instant: datetime | None, /) -> None: ...


def short(value: object) -> str | None:
    """Name a test by a value of any length."""
    text = repr(value)
    return f"{text[:10]}... of {len(text)}" if len(text) > 100 else None


HUGE_FIELDS: dict[str, tuple[Callable[[], tuple[str, object]], str, str]] = {
    "name": (lambda: ("name", "x" * 50_000_000), "name", "must be at most 65536 characters, got 50000000"),
    "wide name": (lambda: ("name", "é" * 20_000_000), "name", "must be at most 65536 characters, got 20000000"),
    "status": (lambda: ("status", "x" * 10_000_000), "status", "must be one of"),
    "load": (lambda: ("max_load", 10**100_000), "max_load", "got an integer of 332193 bits"),
    "257 capabilities": (lambda: ("capabilities", ("",) * 257), "capabilities", "at most 256 entries, got 257"),
    "capabilities": (lambda: ("capabilities", ("",) * 3_000_000), "capabilities", "at most 256 entries, got 3000000"),
    "long capabilities": (
        lambda: ("capabilities", ("x" * 10_000_000,) * 256),
        "capabilities[0]",
        "must be at most 65536 characters, got 10000000",
    ),
    "capabilities together": (lambda: ("capabilities", ("\0" * 60_000,) * 256), "agent", "at most 65536 bytes of JSON"),
    "metadata": (lambda: ("metadata", dict.fromkeys(map(str, range(257)), "")), "metadata", "256 entries, got 257"),
    "metadata key": (lambda: ("metadata", {"k" * 10_000_000: 1}), "metadata key", "must be at most 65536 characters"),
    "metadata together": (
        lambda: ("metadata", dict.fromkeys(map(str, range(256)), "é" * 60_000)),
        "agent",
        "at most 65536 bytes of JSON",
    ),
}


@pytest.mark.parametrize(("make", "named", "problem"), HUGE_FIELDS.values(), ids=HUGE_FIELDS)
async def test_a_huge_field_is_refused_in_a_short_message_before_any_io(
    make: Callable[[], tuple[str, object]], named: str, problem: str
) -> None:
    field, value = make()
    for call in (
        MemoryRegistry().register(AgentInfo("a", **{field: value})),  # type: ignore[arg-type]
        MemoryRegistry().update("a", **{field: value}),  # type: ignore[arg-type]
    ):
        started_at = time.monotonic()
        with pytest.raises(InvalidAgentError) as caught:  # Not RegistryClosedError: the check comes first.
            await call
        assert caught.value.field == named
        assert problem in str(caught.value)
        assert len(str(caught.value)) < 300
        assert time.monotonic() - started_at < 2


WRONG_AT_REGISTRATION = [
    *WRONG_FIELDS,
    ("last_heartbeat", datetime(2026, 1, 1), "last_heartbeat", "must be aware"),
    ("last_heartbeat", "2026-01-01T00:00:00Z", "last_heartbeat", "must be a datetime or None, got str"),
    ("last_heartbeat", 0, "last_heartbeat", "must be a datetime or None, got int"),
    ("last_heartbeat", datetime(2026, 1, 1, tzinfo=BrokenZone()), "last_heartbeat", "its tzinfo failed: no zone"),
]


@pytest.mark.parametrize(("field", "value", "named", "problem"), WRONG_AT_REGISTRATION, ids=short)
async def test_register_refuses_a_wrong_field(
    registry: AgentRegistry, field: str, value: Any, named: str, problem: str
) -> None:
    kept = await registry.register(AgentInfo("kept"))
    fields = {"id": "kept", field: value}
    with pytest.raises(InvalidAgentError) as caught:
        await registry.register(AgentInfo(**fields))
    assert caught.value.field == named
    assert problem in str(caught.value)
    assert named.partition("[")[0] in str(caught.value).lower()
    assert len(str(caught.value)) < 300
    assert (caught.value.code, isinstance(caught.value, ValueError)) == (400, True)
    assert await registry.list() == [kept]


@pytest.mark.parametrize(
    ("field", "value", "named", "problem"), [wrong for wrong in WRONG_FIELDS if wrong[0] != "id"], ids=short
)
async def test_update_refuses_a_wrong_field(
    registry: AgentRegistry, field: str, value: Any, named: str, problem: str
) -> None:
    kept = await registry.register(AgentInfo("kept"))
    with pytest.raises(InvalidAgentError, match="^" + named.partition("[")[0].partition(" ")[0]) as caught:
        await registry.update("kept", **{"name": "new", field: value})
    assert problem in str(caught.value)
    assert await registry.list() == [kept]


@pytest.mark.parametrize(
    ("value", "problem"), [(wrong[1], wrong[3]) for wrong in WRONG_FIELDS if wrong[0] == "id"], ids=short
)
@pytest.mark.parametrize("call", ["get", "heartbeat", "update", "deregister"])
async def test_every_call_refuses_a_wrong_id(value: Any, problem: str, call: str) -> None:
    # Not even open: the check comes before anything else.
    with pytest.raises(InvalidAgentError) as caught:
        await getattr(MemoryRegistry(), call)(value)
    assert problem in str(caught.value)


async def test_the_empty_id_is_told_as_the_go_original_tells_it() -> None:
    with pytest.raises(InvalidAgentError) as caught:
        await MemoryRegistry().register(AgentInfo(""))
    assert str(caught.value) == "agent ID is required"


async def test_only_an_agent_can_be_registered(registry: AgentRegistry) -> None:
    for wrong in ({"id": "a"}, "a", None):
        with pytest.raises(InvalidAgentError, match="must be an AgentInfo"):
            await registry.register(wrong)  # type: ignore[arg-type]
    assert await registry.list() == []


async def test_an_unknown_field_of_an_update_is_named_in_a_short_message() -> None:
    with pytest.raises(TypeError, match=r"cannot change 'xxx\\n") as caught:
        await MemoryRegistry().update("a", **{"xxx\n" * 1000: 1})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


class Instant(datetime):
    pass


class Strange(str):
    def __repr__(self) -> str:
        raise RuntimeError("not to be called")

    __str__ = __format__ = __repr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


def test_methods_of_subclasses_are_not_called() -> None:
    strange = Strange("x")
    checked = valid_agent(
        AgentInfo(strange, strange, (strange,), metadata={strange: strange}, last_heartbeat=Instant.now(UTC))
    )
    assert type(checked.last_heartbeat) is datetime
    for text in (checked.id, checked.name, *checked.capabilities, *checked.metadata, *checked.metadata.values()):
        assert type(text) is str
        assert text == "x"
    with pytest.raises(InvalidAgentError, match="status: must be one of"):
        valid_agent(AgentInfo("a", status=Strange("busy!")))  # type: ignore[arg-type]


@pytest.mark.parametrize("hours", [-14, 14])
@pytest.mark.parametrize("edge", [datetime.min, datetime.max])
def test_instants_at_the_ends_of_the_calendar_are_put_in_utc(edge: datetime, hours: int) -> None:
    checked = valid_agent(AgentInfo("a", last_heartbeat=edge.replace(tzinfo=timezone(timedelta(hours=hours)))))
    assert checked.last_heartbeat is not None
    assert checked.last_heartbeat.tzinfo is UTC
    assert checked.last_heartbeat.year in (1, 9999)

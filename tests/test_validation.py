"""What is refused, before any I/O and with nothing changed, on every store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest

from agentic import AgentInfo, AgentRegistry, InvalidAgentError, MemoryRegistry
from agentic.agent import MAX_RECORD_BYTES, encode_agent, valid_agent
from tests.stores import Store

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
    ("status", 1, "status", "must be one of"),
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
]


def short(value: object) -> str | None:
    """Name a test by a value of any length."""
    text = str(value)
    return f"{text[:10]}... of {len(text)}" if len(text) > 100 else None


WRONG_AT_REGISTRATION = [
    *WRONG_FIELDS,
    ("last_heartbeat", datetime(2026, 1, 1), "last_heartbeat", "must be aware"),
    ("last_heartbeat", "2026-01-01T00:00:00Z", "last_heartbeat", "must be a datetime or None, got str"),
    ("last_heartbeat", 0, "last_heartbeat", "must be a datetime or None, got int"),
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


async def test_a_record_of_64_kib_is_taken_and_one_byte_more_refused(registry: AgentRegistry) -> None:
    room = MAX_RECORD_BYTES - len(encode_agent(AgentInfo("a")))
    stored = await registry.register(AgentInfo("a", name="x" * room))
    assert await registry.get("a") == stored
    with pytest.raises(
        InvalidAgentError, match=f"at most {MAX_RECORD_BYTES} bytes of JSON, got {MAX_RECORD_BYTES + 1}"
    ):
        await registry.register(AgentInfo("a", name="x" * (room + 1)))
    assert await registry.list() == [stored]
    with pytest.raises(InvalidAgentError, match="at most"):
        await registry.register(AgentInfo("a", name="\0" * (room // 6 + 1)))


async def test_an_update_that_makes_the_record_too_long_is_refused(registry: AgentRegistry) -> None:
    stored = await registry.register(AgentInfo("a", name="x" * 40_000))
    with pytest.raises(InvalidAgentError, match="at most") as caught:
        await registry.update("a", metadata={"big": "y" * 30_000})
    assert caught.value.field == "agent"
    assert await registry.get("a") == stored
    assert len((await registry.update("a", name="", metadata={"big": "y" * 30_000})).metadata["big"]) == 30_000


class Shade(StrEnum):
    BLUE = "blue"


async def test_subclasses_of_plain_types_are_stored_plain(store: Store) -> None:
    async with store.make() as registry:
        agent = AgentInfo(Shade.BLUE, name=Shade.BLUE, capabilities=(Shade.BLUE,), metadata={Shade.BLUE: Shade.BLUE})
        await registry.register(agent)
        found = await registry.get("blue")
    assert found.capabilities == ("blue",)
    assert {type(text) for text in (found.id, found.name, *found.capabilities, *found.metadata)} == {str}


@pytest.mark.parametrize("hours", [-14, 14])
@pytest.mark.parametrize("edge", [datetime.min, datetime.max])
def test_instants_at_the_ends_of_the_calendar_are_put_in_utc(edge: datetime, hours: int) -> None:
    checked = valid_agent(AgentInfo("a", last_heartbeat=edge.replace(tzinfo=timezone(timedelta(hours=hours)))))
    assert checked.last_heartbeat is not None
    assert checked.last_heartbeat.tzinfo is UTC
    assert checked.last_heartbeat.year in (1, 9999)

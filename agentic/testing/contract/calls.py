"""Calls on one agent: what each stores, changes, returns and refuses."""

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from msgspec.structs import replace

from agentic.agent import AgentInfo, AgentStatus
from agentic.errors import AgentNotFoundError, BackendError, CorruptRecordError, InvalidAgentError
from agentic.incarnations import LOWEST
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import Contract
from agentic.testing.store import StoreUnderTest
from agentic.validation import MAX_RECORD_BYTES
from agentic.wire import encode_agent

FULL = AgentInfo(
    "full",
    name='Ünï "q" \\ \u2028 😀',
    capabilities=("go", "", "last_heartbeat", '"status":"offline"'),
    status=AgentStatus.BUSY,
    current_load=3,
    max_load=2**63 - 1,
    metadata={"last_heartbeat": "x", "status": "offline", "": "empty key", "nul": "\0"},
    unready='loading "model" \u2028 😀',
)
HOSTILE_IDS = [
    "*", "?[a-z]*", "a:b", "agentic:agent:x", "line\nbreak", "nul\0inside", "\0", " ", "{tag}", "}{", '"quoted"',
    "back\\slash", "\u2028", "é", "e\u0301", "😀", "%00", "../..", "a" * 512, "😀" * 128, "' OR 1=1 --", "\ufeff",
    "\x7f",
]  # fmt: skip
PAST = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Shade(StrEnum):
    BLUE = "blue"


def is_now(instant: datetime | None) -> bool:
    return instant is not None and abs(datetime.now(UTC) - instant) < timedelta(minutes=1)


async def fields_of(registry: AgentRegistry, agent_id: str) -> dict[str, object]:
    agent = await registry.get(agent_id)
    return {name: getattr(agent, name) for name in agent.__struct_fields__}


def contents_of(agent: AgentInfo) -> dict[str, Any]:
    return {f: getattr(agent, f) for f in agent.__struct_fields__ if f not in ("id", "last_heartbeat")}


class Calls(Contract):
    """One agent at a time."""

    # --- register and get ---

    async def test_register_returns_what_is_stored_stamped_with_the_stores_time(self, registry: AgentRegistry) -> None:
        stored = await registry.register(FULL)
        assert is_now(stored.last_heartbeat)
        assert stored.last_heartbeat is not None
        assert stored.last_heartbeat.tzinfo is UTC
        assert await registry.get("full") == stored
        assert replace(stored, last_heartbeat=None, incarnation=0) == FULL

    async def test_register_keeps_a_heartbeat_in_the_past_to_the_microsecond(self, registry: AgentRegistry) -> None:
        stored = await registry.register(AgentInfo("a", last_heartbeat=PAST.astimezone(timezone(timedelta(hours=5)))))
        assert stored.last_heartbeat == PAST
        assert (await registry.get("a")).last_heartbeat == PAST

    async def test_register_stores_a_heartbeat_in_the_future_as_now(self, registry: AgentRegistry) -> None:
        stored = await registry.register(AgentInfo("a", last_heartbeat=datetime.now(UTC) + timedelta(hours=1)))
        assert is_now(stored.last_heartbeat)
        assert (await registry.get("a")).last_heartbeat == stored.last_heartbeat

    async def test_register_replaces_every_field(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("full", name="old", metadata={"old": "1"}, current_load=9))
        await registry.register(FULL)
        stored = await registry.register(AgentInfo("full"))
        assert (stored.name, stored.capabilities, stored.status, stored.metadata) == ("", (), AgentStatus.AVAILABLE, {})
        assert await registry.list() == [stored]

    async def test_an_agent_may_name_any_status_as_text(self, registry: AgentRegistry) -> None:
        for status in AgentStatus:
            stored = await registry.register(AgentInfo("a", status=status.value))
            assert stored.status is status
            assert (await registry.get("a")).status is status

    async def test_objects_of_a_caller_cannot_change_what_is_stored(self, registry: AgentRegistry) -> None:
        metadata, capabilities = {"k": "v"}, ["a"]
        agent = AgentInfo("a", metadata=metadata, capabilities=capabilities)
        stored = await registry.register(agent)
        capabilities.append("b")
        metadata["k"] = "changed"
        assert (await registry.get("a")).metadata == {"k": "v"}
        updated = await registry.update("a", metadata=metadata)
        metadata["k"] = "changed again"
        found = await registry.get("a")
        (listed,) = await registry.list()
        for each in (agent, stored, updated, found, listed):
            with pytest.raises(TypeError, match="cannot be changed"):
                each.metadata["k"] = "x"  # type: ignore[index]
            assert hash(each) == hash(copy.copy(each))
        assert found.metadata == {"k": "changed"}
        assert found.capabilities == ("a",)

    async def test_subclasses_of_plain_types_are_stored_plain(self, registry: AgentRegistry) -> None:
        blue = Shade.BLUE
        await registry.register(AgentInfo(blue, name=blue, capabilities=(blue,), metadata={blue: blue}))
        found = await registry.get("blue")
        assert found.capabilities == ("blue",)
        assert {type(text) for text in (found.id, found.name, *found.capabilities, *found.metadata)} == {str}

    @pytest.mark.parametrize("agent_id", HOSTILE_IDS)
    async def test_hostile_ids_are_stored_exactly(self, registry: AgentRegistry, agent_id: str) -> None:
        bystanders = ["bystander", "é" if agent_id != "é" else "e\u0301"]
        for other in (*bystanders, agent_id):
            await registry.register(AgentInfo(other, name=other))
        await registry.heartbeat(agent_id)
        assert (await registry.get(agent_id)).name == agent_id
        assert (await registry.update(agent_id, current_load=1)).id == agent_id
        assert sorted(agent.id for agent in await registry.list()) == sorted({agent_id, *bystanders})
        assert sorted(await registry.reap(0)) == sorted({agent_id, *bystanders})
        await registry.deregister(agent_id)
        assert sorted(agent.id for agent in await registry.list()) == sorted({*bystanders} - {agent_id})

    # --- the size of a record ---

    async def test_a_record_of_64_kib_is_accepted_and_one_byte_more_is_refused(self, registry: AgentRegistry) -> None:
        room = MAX_RECORD_BYTES - len(encode_agent(AgentInfo("a", incarnation=LOWEST)))
        stored = await registry.register(AgentInfo("a", name="x" * room))
        assert await registry.get("a") == stored
        with pytest.raises(
            InvalidAgentError, match=f"at most {MAX_RECORD_BYTES} bytes of JSON, got {MAX_RECORD_BYTES + 1}"
        ):
            await registry.register(AgentInfo("a", name="x" * (room + 1)))
        assert await registry.list() == [stored]
        with pytest.raises(InvalidAgentError, match="at most"):
            await registry.register(AgentInfo("a", name="\0" * (room // 6 + 1)))

    async def test_an_update_that_makes_the_record_too_long_is_refused(self, registry: AgentRegistry) -> None:
        stored = await registry.register(AgentInfo("a", name="x" * 40_000))
        with pytest.raises(InvalidAgentError, match="at most") as caught:
            await registry.update("a", metadata={"big": "y" * 30_000})
        assert caught.value.field == "agent"
        assert await registry.get("a") == stored
        assert len((await registry.update("a", name="", metadata={"big": "y" * 30_000})).metadata["big"]) == 30_000

    async def test_a_record_of_256_capabilities_and_entries_is_accepted(self, registry: AgentRegistry) -> None:
        numbers = tuple(map(str, range(256)))
        stored = await registry.register(AgentInfo("a", capabilities=numbers, metadata=dict.fromkeys(numbers, "")))
        assert await registry.get("a") == stored
        assert (await registry.update("a", capabilities=numbers)).capabilities == numbers

    # --- absent agents ---

    @pytest.mark.parametrize("call", ["get", "heartbeat", "update", "deregister"])
    async def test_an_absent_agent_is_an_error_of_its_own(self, registry: AgentRegistry, call: str) -> None:
        await registry.register(AgentInfo("other"))
        options = {"status": AgentStatus.BUSY} if call == "update" else {}
        with pytest.raises(AgentNotFoundError, match="^agent not found: ghost$") as caught:
            await getattr(registry, call)("ghost", **options)
        assert (caught.value.agent_id, caught.value.code) == ("ghost", 404)
        assert isinstance(caught.value, LookupError)
        assert [agent.id for agent in await registry.list()] == ["other"]

    async def test_deregister_removes_one_agent_for_good(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a"))
        await registry.register(AgentInfo("b"))
        await registry.deregister("a")
        for call in (registry.get, registry.heartbeat, registry.deregister):
            with pytest.raises(AgentNotFoundError):
                await call("a")
        assert [agent.id for agent in await registry.list()] == ["b"]

    # --- heartbeat ---

    @pytest.mark.parametrize(
        ("before", "after"), [("available",) * 2, ("busy",) * 2, ("unknown",) * 2, ("offline", "available")]
    )
    async def test_heartbeat_stamps_and_revives_an_agent(
        self, registry: AgentRegistry, before: str, after: str
    ) -> None:
        await registry.register(
            AgentInfo("full", status=AgentStatus(before), last_heartbeat=PAST, metadata={"status": "busy"})
        )
        old = await fields_of(registry, "full")
        await registry.heartbeat("full")
        new = await fields_of(registry, "full")
        stamp = new.pop("last_heartbeat")
        assert isinstance(stamp, datetime)
        assert is_now(stamp)
        assert new.pop("status") == after
        assert new == {name: value for name, value in old.items() if name not in ("last_heartbeat", "status")}

    async def test_heartbeat_many_returns_the_ids_that_were_not_there(self, registry: AgentRegistry) -> None:
        ids = [f"agent-{index}" for index in range(1200)]
        await asyncio.gather(*(registry.register(AgentInfo(agent_id, last_heartbeat=PAST)) for agent_id in ids))
        absent = {f"ghost-{index}" for index in range(700)}
        assert await registry.heartbeat_many([*ids, *absent, *ids]) == absent
        assert all(is_now(agent.last_heartbeat) for agent in await registry.list())
        assert await registry.heartbeat_many([]) == set()

    async def test_heartbeat_many_refuses_one_wrong_id_before_any_io(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a", last_heartbeat=PAST))
        for wrong in (["a", ""], "a"):
            with pytest.raises(InvalidAgentError):
                await registry.heartbeat_many(wrong)
        assert (await registry.get("a")).last_heartbeat == PAST

    # --- update ---

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "new"}, {"name": ""}, {"status": AgentStatus.OFFLINE}, {"current_load": 7}, {"max_load": 0},
            {"capabilities": ("x", "y")}, {"capabilities": ()}, {"metadata": {"new": "1"}}, {"metadata": {}},
            {"unready": "loading"}, {"unready": ""},
            {"name": "two", "current_load": 1, "metadata": {"a": "b"}, "capabilities": ()},
        ],
    )  # fmt: skip
    async def test_update_changes_only_the_named_fields(self, registry: AgentRegistry, change: dict[str, Any]) -> None:
        for start in (AgentInfo("a", last_heartbeat=PAST), AgentInfo("full", last_heartbeat=PAST, **contents_of(FULL))):
            await registry.register(start)
            before = await fields_of(registry, start.id)
            returned = await registry.update(start.id, **change)
            after = await fields_of(registry, start.id)
            assert after == {**before, **change}
            assert await registry.get(start.id) == returned

    async def test_update_of_nothing_returns_the_agent(self, registry: AgentRegistry) -> None:
        stored = await registry.register(FULL)
        assert await registry.update("full") == stored

    async def test_update_refuses_names_it_cannot_change(self, registry: AgentRegistry) -> None:
        stored = await registry.register(FULL)
        for name in ("id", "last_heartbeat", "color"):
            with pytest.raises(TypeError, match=name):
                await registry.update("full", **{name: "x"})  # type: ignore[arg-type]
        assert await registry.get("full") == stored

    # --- order, and many calls at once ---

    async def test_calls_on_one_agent_take_effect_in_the_order_they_were_issued(self, registry: AgentRegistry) -> None:
        for round_ in range(50):
            results = await asyncio.gather(
                registry.register(AgentInfo("a", name="first")),
                registry.update("a", name="second"),
                registry.heartbeat("a"),
                registry.get("a"),
                registry.update("a", name="third", current_load=round_),
                registry.get("a"),
                registry.deregister("a"),
                registry.heartbeat("a"),
                registry.register(AgentInfo("a", name="fourth")),
                registry.get("a"),
                return_exceptions=True,
            )
            names = [result.name if isinstance(result, AgentInfo) else type(result).__name__ for result in results]
            gone = "AgentNotFoundError"
            expected = ["first", "second", "Beat", "second", "third", "third", "NoneType", gone, "fourth", "fourth"]
            assert names == expected

    async def test_heartbeat_many_keeps_its_place_among_other_calls(self, registry: AgentRegistry) -> None:
        _, absent = await asyncio.gather(registry.register(AgentInfo("a")), registry.heartbeat_many(["a"]))
        assert absent == set()
        absent, _ = await asyncio.gather(registry.heartbeat_many(["a"]), registry.deregister("a"))
        assert absent == set()
        _, absent = await asyncio.gather(registry.register(AgentInfo("a")), registry.heartbeat_many(["a"]))
        assert absent == set()
        _, absent = await asyncio.gather(registry.deregister("a"), registry.heartbeat_many(["a"]))
        assert absent == {"a"}

    async def test_hundreds_of_concurrent_calls_each_get_their_own_answer(self, registry: AgentRegistry) -> None:
        ids = [f"agent-{index}" for index in range(1500)]
        stored = await asyncio.gather(*(registry.register(AgentInfo(i, name=i)) for i in ids))
        assert [agent.name for agent in stored] == ids
        updated = await asyncio.gather(*(registry.update(i, current_load=n) for n, i in enumerate(ids)))
        assert [(agent.id, agent.current_load) for agent in updated] == [(i, n) for n, i in enumerate(ids)]
        mixed = await asyncio.gather(
            *(registry.get(i if n % 3 else f"no-{i}") for n, i in enumerate(ids)), return_exceptions=True
        )
        assert [agent.id if isinstance(agent, AgentInfo) else getattr(agent, "agent_id", agent) for agent in mixed] == [
            i if n % 3 else f"no-{i}" for n, i in enumerate(ids)
        ]
        same = await asyncio.gather(*(registry.get("agent-7") for _ in range(300)))
        assert {agent.id for agent in same} == {"agent-7"}

    async def test_a_loop_of_calls_can_be_cancelled(self, registry: AgentRegistry) -> None:
        await registry.register(AgentInfo("a"))

        async def beat() -> None:
            while True:
                await registry.heartbeat("a")

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(beat(), 0.05)

    # --- the ttl of a registry ---

    async def test_an_agent_is_gone_when_it_was_not_written_for_the_ttl(self, clocked_store: StoreUnderTest) -> None:
        async with clocked_store.make(ttl=100) as registry:
            await registry.register(AgentInfo("a"))
            await clocked_store.pass_time(90)
            assert (await registry.get("a")).id == "a"
            await clocked_store.pass_time(11)
            for call in (registry.get, registry.heartbeat, registry.deregister, registry.update):
                with pytest.raises(AgentNotFoundError):
                    await call("a")
            with pytest.raises(AgentNotFoundError):
                await registry.update("a", name="x")
            assert await registry.list() == []
            assert await registry.flush() == 0
            await registry.register(AgentInfo("a"))
            assert [agent.id for agent in await registry.list()] == ["a"]

    @pytest.mark.parametrize("call", ["register", "heartbeat", "heartbeat_many"])
    async def test_register_and_heartbeat_renew_the_ttl(self, clocked_store: StoreUnderTest, call: str) -> None:
        async with clocked_store.make(ttl=100) as registry:
            await registry.register(AgentInfo("a"))
            await clocked_store.pass_time(60)
            argument: object = {"register": AgentInfo("a"), "heartbeat": "a", "heartbeat_many": ["a"]}[call]
            await getattr(registry, call)(argument)
            await clocked_store.pass_time(60)
            assert (await registry.get("a")).id == "a"

    async def test_update_and_reap_do_not_renew_the_ttl(self, clocked_store: StoreUnderTest) -> None:
        async with clocked_store.make(ttl=100) as registry:
            await registry.register(AgentInfo("a", last_heartbeat=PAST))
            await clocked_store.pass_time(60)
            await registry.update("a", name="x")
            assert await registry.reap(10) == ["a"]
            await clocked_store.pass_time(60)
            with pytest.raises(AgentNotFoundError):
                await registry.get("a")

    async def test_without_a_ttl_an_agent_stays(self, clocked_store: StoreUnderTest) -> None:
        async with clocked_store.make(ttl=None) as registry:
            await registry.register(AgentInfo("a"))
            await clocked_store.pass_time(10 * 365 * 86400)
            assert (await registry.get("a")).id == "a"

    # --- corrupt records ---

    async def test_a_corrupt_record_is_an_error_only_for_its_own_callers(self, store: StoreUnderTest) -> None:
        store.require("corruption")
        async with store.make() as registry:
            for agent_id in ("good", "bad", "fine"):
                await registry.register(AgentInfo(agent_id))
            await store.corrupt("bad")
            found = await asyncio.gather(*(registry.get(i) for i in ("good", "bad", "fine")), return_exceptions=True)
            assert [type(each) for each in found] == [AgentInfo, CorruptRecordError, AgentInfo]
            with pytest.raises(BackendError, match="bad"):
                await registry.update("bad", name="x")
            assert sorted(agent.id for agent in await registry.list()) == ["fine", "good"]
            await registry.deregister("bad")
            with pytest.raises(AgentNotFoundError):
                await registry.get("bad")

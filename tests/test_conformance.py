"""The contract of AgentRegistry, one agent at a time, on every store."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentStatus,
    BackendError,
    CorruptRecordError,
    InvalidAgentError,
    RegistryClosedError,
    RegistryError,
)
from tests.support.stores import MemoryStore, SQLiteStore, Store

FULL = AgentInfo(
    "full",
    name='Ünï "q" \\ \u2028 😀',
    capabilities=("go", "", "last_heartbeat", '"status":"offline"'),
    status=AgentStatus.BUSY,
    current_load=3,
    max_load=2**63 - 1,
    metadata={"last_heartbeat": "x", "status": "offline", "": "empty key", "nul": "\0"},
)
PAST = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def is_now(instant: datetime | None) -> bool:
    return instant is not None and abs(datetime.now(UTC) - instant) < timedelta(minutes=1)


async def fields_of(registry: AgentRegistry, agent_id: str) -> dict[str, object]:
    agent = await registry.get(agent_id)
    return {name: getattr(agent, name) for name in agent.__struct_fields__}


# --- register and get ---


async def test_register_returns_what_is_stored_stamped_with_the_stores_time(registry: AgentRegistry) -> None:
    stored = await registry.register(FULL)
    assert is_now(stored.last_heartbeat)
    assert stored.last_heartbeat is not None
    assert stored.last_heartbeat.tzinfo is UTC
    assert await registry.get("full") == stored
    assert {f: getattr(stored, f) for f in FULL.__struct_fields__ if f != "last_heartbeat"} == {
        f: getattr(FULL, f) for f in FULL.__struct_fields__ if f != "last_heartbeat"
    }


async def test_register_keeps_a_heartbeat_in_the_past_to_the_microsecond(registry: AgentRegistry) -> None:
    stored = await registry.register(AgentInfo("a", last_heartbeat=PAST.astimezone(timezone(timedelta(hours=5)))))
    assert stored.last_heartbeat == PAST
    assert (await registry.get("a")).last_heartbeat == PAST


async def test_register_stores_a_heartbeat_in_the_future_as_now(registry: AgentRegistry) -> None:
    stored = await registry.register(AgentInfo("a", last_heartbeat=datetime.now(UTC) + timedelta(hours=1)))
    assert is_now(stored.last_heartbeat)
    assert (await registry.get("a")).last_heartbeat == stored.last_heartbeat


async def test_register_replaces_every_field(registry: AgentRegistry) -> None:
    await registry.register(AgentInfo("full", name="old", metadata={"old": "1"}, current_load=9))
    await registry.register(FULL)
    stored = await registry.register(AgentInfo("full"))
    assert (stored.name, stored.capabilities, stored.status, stored.metadata) == ("", (), AgentStatus.AVAILABLE, {})
    assert await registry.list() == [stored]


async def test_an_agent_may_name_any_status_as_text(registry: AgentRegistry) -> None:
    for status in AgentStatus:
        stored = await registry.register(AgentInfo("a", status=status.value))
        assert stored.status is status
        assert (await registry.get("a")).status is status


async def test_what_a_caller_holds_cannot_change_what_is_stored(registry: AgentRegistry) -> None:
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


@pytest.mark.parametrize(
    "agent_id",
    [
        "*", "?[a-z]*", "a:b", "agentic:agent:x", "line\nbreak", "nul\0inside", "\0", " ", "{tag}", "}{", '"quoted"',
        "back\\slash", "\u2028", "é", "e\u0301", "😀", "%00", "../..", "a" * 512, "😀" * 128, "' OR 1=1 --", "\ufeff", "\x7f",
    ],
)  # fmt: skip
async def test_hostile_ids_are_taken_exactly(registry: AgentRegistry, agent_id: str) -> None:
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


# --- absent agents ---


@pytest.mark.parametrize("call", ["get", "heartbeat", "update", "deregister"])
async def test_an_absent_agent_is_an_error_of_its_own(registry: AgentRegistry, call: str) -> None:
    await registry.register(AgentInfo("other"))
    options = {"status": AgentStatus.BUSY} if call == "update" else {}
    with pytest.raises(AgentNotFoundError, match="^agent not found: ghost$") as caught:
        await getattr(registry, call)("ghost", **options)
    assert (caught.value.agent_id, caught.value.code) == ("ghost", 404)
    assert isinstance(caught.value, LookupError)
    assert [agent.id for agent in await registry.list()] == ["other"]


async def test_deregister_removes_one_agent_for_good(registry: AgentRegistry) -> None:
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
async def test_heartbeat_stamps_and_brings_back(registry: AgentRegistry, before: str, after: str) -> None:
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


async def test_heartbeat_many_returns_the_ids_that_were_not_there(registry: AgentRegistry) -> None:
    ids = [f"agent-{index}" for index in range(1200)]
    await asyncio.gather(*(registry.register(AgentInfo(agent_id, last_heartbeat=PAST)) for agent_id in ids))
    absent = {f"ghost-{index}" for index in range(700)}
    assert await registry.heartbeat_many([*ids, *absent, *ids]) == absent
    assert all(is_now(agent.last_heartbeat) for agent in await registry.list())
    assert await registry.heartbeat_many([]) == set()


async def test_heartbeat_many_refuses_one_wrong_id_before_any_io(registry: AgentRegistry) -> None:
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
        {"name": "two", "current_load": 1, "metadata": {"a": "b"}, "capabilities": ()},
    ],
)  # fmt: skip
async def test_update_changes_the_named_fields_alone(registry: AgentRegistry, change: dict[str, object]) -> None:
    for start in (AgentInfo("a", last_heartbeat=PAST), AgentInfo("full", last_heartbeat=PAST, **_contents(FULL))):
        await registry.register(start)
        before = await fields_of(registry, start.id)
        returned = await registry.update(start.id, **change)  # type: ignore[arg-type]
        after = await fields_of(registry, start.id)
        assert after == {**before, **change}
        assert await registry.get(start.id) == returned


async def test_update_of_nothing_returns_the_agent(registry: AgentRegistry) -> None:
    stored = await registry.register(FULL)
    assert await registry.update("full") == stored


async def test_update_refuses_names_it_cannot_change(registry: AgentRegistry) -> None:
    stored = await registry.register(FULL)
    for name in ("id", "last_heartbeat", "color"):
        with pytest.raises(TypeError, match=name):
            await registry.update("full", **{name: "x"})  # type: ignore[arg-type]
    assert await registry.get("full") == stored


# --- a registry's own ttl ---


async def test_an_agent_is_gone_when_nobody_wrote_it_for_the_ttl(store: Store) -> None:
    async with store.make(ttl=100) as registry:
        await registry.register(AgentInfo("a"))
        await store.let_pass(90)
        assert (await registry.get("a")).id == "a"
        await store.let_pass(11)
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
async def test_register_and_heartbeat_renew_the_ttl(store: Store, call: str) -> None:
    async with store.make(ttl=100) as registry:
        await registry.register(AgentInfo("a"))
        await store.let_pass(60)
        argument: object = {"register": AgentInfo("a"), "heartbeat": "a", "heartbeat_many": ["a"]}[call]
        await getattr(registry, call)(argument)
        await store.let_pass(60)
        assert (await registry.get("a")).id == "a"


async def test_update_and_reap_do_not_renew_the_ttl(store: Store) -> None:
    async with store.make(ttl=100) as registry:
        await registry.register(AgentInfo("a", last_heartbeat=PAST))
        await store.let_pass(60)
        await registry.update("a", name="x")
        assert await registry.reap(10) == ["a"]
        await store.let_pass(60)
        with pytest.raises(AgentNotFoundError):
            await registry.get("a")


async def test_without_a_ttl_an_agent_stays(store: Store) -> None:
    async with store.make(ttl=None) as registry:
        await registry.register(AgentInfo("a"))
        await store.let_pass(10 * 365 * 86400)
        assert (await registry.get("a")).id == "a"


# --- lifecycle and order ---


async def test_a_registry_that_is_not_open_says_so(store: Store) -> None:
    registry = store.make()
    for _ in range(2):
        for call in (
            registry.register(AgentInfo("a")), registry.get("a"), registry.heartbeat("a"), registry.heartbeat_many(["a"]),
            registry.update("a", name="x"), registry.deregister("a"), registry.list(), registry.reap(1), registry.flush(),
        ):  # fmt: skip
            with pytest.raises(RegistryClosedError):
                await call
        with pytest.raises(RegistryClosedError):
            _ = [agent async for agent in registry.scan()]
        async with registry:
            pass
        await registry.aclose()


async def test_an_open_registry_cannot_be_opened_again(registry: AgentRegistry) -> None:
    with pytest.raises(RegistryError, match="open already"):
        await registry.open()
    await registry.register(AgentInfo("a"))


async def test_a_registry_can_be_opened_again_after_it_was_closed(store: Store) -> None:
    registry = store.make()
    for _ in range(2):
        async with registry:
            await registry.register(AgentInfo("a"))
            assert (await registry.get("a")).id == "a"


DUPLICATES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda each: pickle.loads(pickle.dumps(each))}


@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
async def test_a_registry_is_copied_and_pickled_only_while_it_is_closed(
    store: Store, duplicate: Callable[[AgentRegistry], AgentRegistry]
) -> None:
    registry = store.make()
    for _ in range(2):
        copied = duplicate(registry)
        async with registry:
            await registry.register(AgentInfo("a"))
            with pytest.raises(TypeError, match="an open registry cannot be copied or pickled"):
                duplicate(registry)
            async with copied:
                assert (await copied.register(AgentInfo("b"))).id == "b"
            await registry.heartbeat("a")


async def test_calls_on_one_agent_take_effect_in_the_order_they_were_issued(registry: AgentRegistry) -> None:
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
        gone, done = "AgentNotFoundError", "NoneType"
        expected = ["first", "second", done, "second", "third", "third", done, gone, "fourth", "fourth"]
        assert names == expected


async def test_hundreds_of_concurrent_calls_each_get_their_own_answer(registry: AgentRegistry) -> None:
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


# --- corrupt records ---


async def test_a_corrupt_record_is_an_error_for_its_own_callers_alone(store: Store) -> None:
    if isinstance(store, MemoryStore):
        return
    async with store.make() as registry:
        for agent_id in ("good", "bad", "fine"):
            await registry.register(AgentInfo(agent_id))
        if isinstance(store, SQLiteStore) and store.make().path == ":memory:":
            await registry.backend.database.write(  # type: ignore[attr-defined]
                lambda db: db.execute("UPDATE agents SET metadata = 'no JSON' WHERE id = 'bad'")
            )
        else:
            store.corrupt("bad")
        found = await asyncio.gather(*(registry.get(i) for i in ("good", "bad", "fine")), return_exceptions=True)
        assert [type(each) for each in found] == [AgentInfo, CorruptRecordError, AgentInfo]
        with pytest.raises(BackendError, match="bad"):
            await registry.update("bad", name="x")
        assert sorted(agent.id for agent in await registry.list()) == ["fine", "good"]
        await registry.deregister("bad")
        with pytest.raises(AgentNotFoundError):
            await registry.get("bad")


def _contents(agent: AgentInfo) -> dict[str, Any]:
    return {f: getattr(agent, f) for f in agent.__struct_fields__ if f not in ("id", "last_heartbeat")}

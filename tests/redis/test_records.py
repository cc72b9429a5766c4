"""Records in Redis from any writer: a change touches only its own fields and no other byte."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agentic import AgentInfo, AgentStatus, BackendError, CorruptRecordError, InvalidAgentError
from agentic.wire import decode_agent, encode_agent
from tests.support.documents import GO_RECORDS
from tests.support.stores import RedisStore

STAMP = rb'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"'
OLD = '"2020-01-01T00:00:00Z"'

# Each is valid JSON with the id "x"; @S@ stands for the effective status (offline), @H@ for the effective heartbeat.
FORMS = {
    "plain": '{"id":"x","name":"n","status":@S@,"last_heartbeat":@H@,"current_load":0,"max_load":0}',
    "with metadata": '{"id":"x","status":@S@,"last_heartbeat":@H@,"metadata":{"status":"offline","last_heartbeat":"y"}}',
    "spaces": '{ "id" : "x" , "status" : @S@ ,\n\t"last_heartbeat" : @H@ , "max_load" : 12345678901234567 }\n',
    "other order": '{"last_heartbeat":@H@,"n":1.5e300,"status":@S@,"id":"x"}',
    "nested look-alikes first": (
        '{"extra":{"status":"offline","last_heartbeat":"no","deep":[{"last_heartbeat":"no"}]},"id":"x",'
        '"more":["status","last_heartbeat",{"status":"offline"}],"status":@S@,"last_heartbeat":@H@}'
    ),
    "plain look-alike inside an object": (
        '{"id":"x","old":{"a":"b","status":"offline","last_heartbeat":"2020-01-01T00:00:00Z"},"status":@S@,"last_heartbeat":@H@}'
    ),
    "look-alikes in strings": (
        r'{"id":"x","name":"\",\"status\":\"offline\",\"last_heartbeat\":\"z\"","capabilities":["last_heartbeat",",\"status\":\"","{["],'
        '"status":@S@,"last_heartbeat":@H@}'
    ),
    "brace in a string": '{"id":"x","name":"{\\"status\\":\\"busy\\"","status":@S@,"last_heartbeat":@H@}',
    "empty arrays and objects": '{"a":[],"b":{},"id":"x","c":[[],{}],"status":@S@,"last_heartbeat":@H@,"capabilities":[]}',
    "17 digits": '{"id":"x","n":12345678901234567,"status":@S@,"last_heartbeat":@H@,"f":0.1234567890123456789,"e":-1E+2}',
    "written twice": '{"id":"x","status":"busy","last_heartbeat":"2020-01-01T00:00:01Z","status":@S@,"last_heartbeat":@H@}',
    "written twice, apart": '{"status":"busy","last_heartbeat":"2020-01-01T00:00:01Z","id":"x","last_heartbeat":@H@,"status":@S@}',
    "escaped key": r'{"id":"x","st\u0061tus":@S@,"last\u005fheartbeat":@H@}',
    "escaped quote ends the heartbeat": '{"id":"x","name":"ends with \\\\","status":@S@,"last_heartbeat":@H@,"z":"\\""}',
    "heartbeat first, then look-alike": '{"id":"x","last_heartbeat":@H@,"x":"\\"last_heartbeat\\":","status":@S@}',
    "literals": '{"id":"x","t":true,"f":false,"n":null,"status":@S@,"last_heartbeat":@H@}',
    "plain look-alike inside an object that stands last": (
        '{"id":"x","status" : @S@,"last_heartbeat" : @H@,"old":{"a":"b","status":"busy","last_heartbeat":"2020-01-01T00:00:00Z"}}'
    ),
    "nothing else": '{"id":"x","status":@S@,"last_heartbeat":@H@}',
}  # fmt: skip
HEARTBEATS = [
    '"2020-01-01T00:00:00.123456789Z"',
    '"0001-01-01T00:00:00Z"',
    '"2020-01-01T00:00:00+01:00"',
    OLD,
    '"2020-01-01T00:00:00\\u005a"',
    "null",
    '""',
]


def form(text: str, status: str, heartbeat: str) -> bytes:
    return text.replace("@S@", status).replace("@H@", heartbeat).encode()


def put(store: RedisStore, agent_id: str, record: bytes) -> str:
    key = f"{store.prefix}:agent:{agent_id}"
    store.client.set(key, record, px=60_000)
    return key


def assert_stamped(after: Any, text: str, status: str) -> None:
    """Check that the record is the form with a heartbeat of now."""
    pattern = re.escape(form(text, status, "@H@")).replace(b"@H@", b"(" + STAMP + b")")
    found = re.fullmatch(pattern, after)
    assert found, after
    stamp = datetime.fromisoformat(json.loads(found[1]))
    assert abs((datetime.now(UTC) - stamp).total_seconds()) < 60


@pytest.mark.parametrize("heartbeat", HEARTBEATS)
@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
async def test_a_heartbeat_changes_only_its_own_fields(redis_store: RedisStore, text: str, heartbeat: str) -> None:
    async with redis_store.make() as registry:
        for before, after in (
            ('"offline"', '"available"'),
            ('"busy"', '"busy"'),
            ('"draining"', '"draining"'),
            ('""', '""'),
        ):
            key = put(redis_store, "x", form(text, before, heartbeat))
            await registry.heartbeat("x")
            assert_stamped(redis_store.client.get(key), text, after)
            await registry.heartbeat("x")
            assert_stamped(redis_store.client.get(key), text, after)


def without_note(record: Any) -> tuple[bytes, str | None]:
    """Return a record without `before_offline`, and its value."""
    found = re.search(rb',"before_offline":("(?:[^"\\]|\\.)*")', record)
    return (record.replace(found[0], b""), json.loads(found[1])) if found else (record, None)


@pytest.mark.parametrize("heartbeat", HEARTBEATS)
@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
async def test_a_reap_changes_only_the_status_and_keeps_the_one_before(
    redis_store: RedisStore, text: str, heartbeat: str
) -> None:
    async with redis_store.make() as registry:
        for before in ('"available"', '"busy"', '"draining"', r'"qu\"o\u0074e"', '""', "null"):
            key = put(redis_store, "x", form(text, before, heartbeat))
            assert await registry.reap(60) == ["x"]
            kept = json.loads(before) if before not in ('"available"', '""', "null") else None
            assert without_note(redis_store.client.get(key)) == (form(text, '"offline"', heartbeat), kept)
            assert await registry.reap(60) == []
            await registry.heartbeat("x")
            assert_stamped(redis_store.client.get(key), text, '"available"' if kept is None else before)


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
async def test_an_update_changes_only_its_own_fields(redis_store: RedisStore, text: str) -> None:
    key = put(redis_store, "x", form(text, '"offline"', OLD))
    async with redis_store.make() as registry:
        updated = await registry.update("x", status=AgentStatus.BUSY)
    assert updated.status is AgentStatus.BUSY
    assert redis_store.client.get(key) == form(text, '"busy"', OLD)


async def test_every_go_record_is_read_beaten_and_reaped_without_another_byte_changed(redis_store: RedisStore) -> None:
    records = {json.loads(record)["id"]: record for record in GO_RECORDS}
    keys = {agent_id: put(redis_store, agent_id, record.encode()) for agent_id, record in records.items()}
    async with redis_store.make() as registry:
        assert {agent.id for agent in await registry.list()} == set(records)
        for agent_id in records:
            assert (await registry.get(agent_id)).id == agent_id
        assert set(await registry.reap(60)) == set(records) - {"trimmed"}
        statuses = {}
        for agent_id, record in records.items():
            # In these records, the effective fields come after their escaped duplicates.
            offline = re.sub(r'(?<!\\)"status":"[a-z]*"', '"status":"offline"', record)
            found, kept = without_note(redis_store.client.get(keys[agent_id]))
            assert found == offline.encode()
            statuses[agent_id] = kept or "available"
        assert set(statuses.values()) > {"available", "busy"}
        assert await registry.heartbeat_many(records) == set()
        assert await registry.heartbeat_many(records) == set()  # now their times have this library's width
        for agent_id, record in records.items():
            back = re.sub(r'(?<!\\)"status":"[a-z]*"', f'"status":"{statuses[agent_id]}"', record)
            text = re.sub(r'(?<!\\)"last_heartbeat":"[^"]*"', '"last_heartbeat":@H@', back)
            assert_stamped(redis_store.client.get(keys[agent_id]), text, "")


async def test_missing_fields_are_put_in_their_place(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        key = put(redis_store, "x", b'{"id":"x","max_load":3,"z":1}')
        await registry.heartbeat("x")
        record: Any = redis_store.client.get(key)
        assert re.fullmatch(b'{"id":"x","last_heartbeat":' + STAMP + b',"max_load":3,"z":1}', record)
        put(redis_store, "x", b'{"id":"x","z":1}')
        assert await registry.reap(60) == ["x"]
        assert redis_store.client.get(key) == b'{"id":"x","z":1,"status":"offline"}'
        put(redis_store, "x", b'{ "z" : [1] , "id" : "x" , "metadata" : {} }')
        await registry.update("x", name="n", capabilities=("c",), metadata={})
        assert redis_store.client.get(key) == b'{ "z" : [1] , "id" : "x" , "name":"n","capabilities":["c"] }'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"metadata":{},"id":"x","metadata":{},"z":1,"metadata":{}}', '{"id":"x","z":1}'),
        ('{ "id":"x" , "metadata":{} , "metadata":{"a":"b"} }', '{ "id":"x" }'),
        ('{"metadata":{},"metadata":{},"id":"x"}', '{"id":"x"}'),
        ('{"id":"x","name":"metadata\\":{},","z":{"metadata":{}},"metadata":{}}', '{"id":"x","name":"metadata\\":{},","z":{"metadata":{}}}'),
    ],
)  # fmt: skip
async def test_a_field_is_left_out_however_often_it_is_written(
    redis_store: RedisStore, before: str, after: str
) -> None:
    key = put(redis_store, "x", before.encode())
    async with redis_store.make() as registry:
        await registry.update("x", metadata={})
    record: Any = redis_store.client.get(key)
    assert record.decode().replace(" ", "") == after.replace(" ", "")


async def test_a_field_written_thousands_of_times_does_not_block_the_server(redis_store: RedisStore) -> None:
    # One pass per field would take minutes, one pass for all takes a fraction of a second.
    many = 7_000
    key = put(redis_store, "x", b'{"id":"x",' + b",".join([b'"metadata":{}'] * many) + b"}")
    async with redis_store.make() as registry:
        await registry.update("x", metadata={})
        assert redis_store.client.get(key) == b'{"id":"x"}'
        put(redis_store, "x", b'{"id":"x",' + b",".join([b'"current_load":1'] * many) + b"}")
        with pytest.raises(InvalidAgentError, match="at most"):
            await registry.update("x", current_load=22)
        assert (await registry.update("x", current_load=2)).current_load == 2


changes = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["", "n", 'q"\\']),
        "capabilities": st.sampled_from([(), ("a",), ('"status":"busy"', "b")]),
        "status": st.sampled_from(AgentStatus),
        "current_load": st.integers(0, 2**63 - 1),
        "metadata": st.sampled_from([{}, {"status": "x"}, {"last_heartbeat": "y", "k": "v"}]),
    },
)


@settings(max_examples=60)
@given(steps=st.lists(changes, min_size=1, max_size=5))
async def test_updates_of_our_own_record_leave_it_as_a_registration_writes_it(
    redis_store: RedisStore, steps: list[dict[str, Any]]
) -> None:
    async with redis_store.make() as registry:
        agent = await registry.register(AgentInfo("x"))
        for step in steps:
            agent = await registry.update("x", **step)
            assert all(getattr(agent, name) == value for name, value in step.items())
            assert redis_store.client.get(f"{redis_store.prefix}:agent:x") == encode_agent(agent)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=12)
)
tricky = st.sampled_from(
    ["status", "last_heartbeat", '","last_heartbeat":"', ',"status":"offline', "{", "}", "[", '\\"', "\\"]
)
values = st.recursive(
    scalars | tricky,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tricky | st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
gaps = st.sampled_from(["", "", " ", "\n\t"])


@st.composite
def foreign_records(draw: st.DrawFn) -> list[str]:
    """A JSON object with the id "x" as a list of pieces; @S@ and @H@ stand for its status and heartbeat."""
    extra = draw(st.dictionaries(st.text(max_size=6).map(lambda text: "_" + text), values, max_size=4))
    ascii_only = draw(st.booleans())
    fields = [
        (json.dumps(name, ensure_ascii=ascii_only), json.dumps(value, ensure_ascii=ascii_only))
        for name, value in extra.items()
    ]
    fields += [('"id"', '"x"'), ('"status"', "@S@"), ('"last_heartbeat"', "@H@")]
    shuffled = draw(st.permutations(fields))
    gap = draw(gaps)
    return [gap, "{", gap, f"{gap},{gap}".join(f"{name}{gap}:{gap}{value}" for name, value in shuffled), gap, "}", gap]


@settings(max_examples=150)
@given(pieces=foreign_records().filter(lambda pieces: not any("\ud800" <= c <= "\udfff" for p in pieces for c in p)))
async def test_any_json_object_keeps_every_byte_of_others(redis_store: RedisStore, pieces: list[str]) -> None:
    text = "".join(pieces)
    async with redis_store.make() as registry:
        key = put(redis_store, "x", form(text, '"offline"', OLD))
        await registry.heartbeat("x")
        assert_stamped(redis_store.client.get(key), text, '"available"')
        put(redis_store, "x", form(text, '"busy"', OLD))
        assert await registry.reap(60) == ["x"]
        assert without_note(redis_store.client.get(key)) == (form(text, '"offline"', OLD), "busy")
        await registry.update("x", status=AgentStatus.AVAILABLE)
        assert redis_store.client.get(key) == form(text, '"available"', OLD)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"id":"x"',
        b'{"id":"x"}}',
        b'{"id" "x"}',
        b"{id:1}",
        b'{"id":"x",}',
        b'{"a":[1}',
        b"\xff",
    ],
)
async def test_a_corrupt_record_is_refused_and_left_as_it_is(redis_store: RedisStore, record: bytes) -> None:
    key = put(redis_store, "x", record)
    async with redis_store.make() as registry:
        for call in (
            registry.heartbeat("x"),
            registry.get("x"),
            registry.update("x", name="n"),
            registry.heartbeat_many(["x"]),
        ):
            with pytest.raises(BackendError, match="corrupt"):
                await call
        assert await registry.list() == []
        assert await registry.reap(0) == []
        assert redis_store.client.get(key) == record
        await registry.deregister("x")
    assert redis_store.client.get(key) is None


async def test_a_record_under_another_ids_key_is_corrupt(redis_store: RedisStore) -> None:
    put(redis_store, "x", b'{"id":"y"}')
    async with redis_store.make() as registry:
        with pytest.raises(BackendError, match="another key"):
            await registry.get("x")
        assert await registry.list() == []


async def test_a_heartbeat_in_the_servers_future_ages_from_the_next_sweep_on(redis_store: RedisStore) -> None:
    key = put(redis_store, "x", b'{"id":"x","last_heartbeat":"2100-01-01T00:00:00Z"}')
    redis_store.client.pexpire(key, 10**9)
    async with redis_store.make(ttl=300) as registry:
        before = await registry.store_time()
        read = await registry.get("x")
        assert before <= cast("datetime", read.last_heartbeat) <= await registry.store_time()
        assert await registry.reap(0) == []
        assert 0 < redis_store.client.pttl(key) <= 300_000
        stamped = decode_agent(cast("bytes", redis_store.client.get(key)))
        assert before <= cast("datetime", stamped.last_heartbeat) <= await registry.store_time()
        assert await registry.reap(0) == ["x"]


async def test_an_offline_agent_from_the_servers_future_is_gone_after_its_ttl(redis_store: RedisStore) -> None:
    key = put(redis_store, "x", b'{"id":"x","status":"offline","last_heartbeat":"2100-01-01T00:00:00Z"}')
    redis_store.client.pexpire(key, 10**9)
    async with redis_store.make(ttl=300) as registry:
        assert await registry.reap(0) == []
        assert 0 < redis_store.client.pttl(key) <= 300_000
        assert (await registry.get("x")).status is AgentStatus.OFFLINE
        assert await registry.reap(0) == []


async def test_a_record_of_megabytes_is_corrupt_for_every_call(redis_store: RedisStore) -> None:
    """The server reads only a few of them in one call and parses none."""
    ids = [f"x{number}" for number in range(20)]
    records = {agent_id: b'{"id":"%s","a":"%s"}' % (agent_id.encode(), b"x" * 2_000_000) for agent_id in ids}
    keys = {agent_id: put(redis_store, agent_id, record) for agent_id, record in records.items()}
    async with redis_store.make() as registry:
        statistics: Any = redis_store.client.info("commandstats")
        for call in (registry.heartbeat, registry.get, lambda agent_id: registry.update(agent_id, name="n")):
            for outcome in await asyncio.gather(*map(call, ids), return_exceptions=True):
                assert isinstance(outcome, CorruptRecordError)
        assert await registry.list() == []
        assert await registry.reap(0) == []
        after: Any = redis_store.client.info("commandstats")
        assert after["cmdstat_evalsha"]["calls"] - statistics["cmdstat_evalsha"]["calls"] >= 3 * len(ids)
        assert all(redis_store.client.get(keys[agent_id]) == records[agent_id] for agent_id in ids)
        # A registration replaces such a record.
        await registry.register(AgentInfo("x0"))
        assert [agent.id for agent in await registry.list()] == ["x0"]


COSTLY = AgentInfo("x", name="{", capabilities=tuple('"' * 120 + str(number) for number in range(256)))


async def test_costly_records_are_spread_over_several_calls(redis_store: RedisStore) -> None:
    """Records within all limits must not block the server for long: one call would parse 64 of them."""
    ids = [f"x{number}" for number in range(64)]
    async with redis_store.make() as registry:
        await asyncio.gather(*(registry.register(replace(COSTLY, id=agent_id)) for agent_id in ids))
        calls = redis_store.client.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert await registry.heartbeat_many(ids) == set()
        assert redis_store.client.info("commandstats")["cmdstat_evalsha"]["calls"] - calls >= 16
        assert sorted(await registry.reap(0)) == sorted(ids)
        assert {agent.status for agent in await registry.list()} == {AgentStatus.OFFLINE}

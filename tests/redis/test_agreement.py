"""`get` and the scripts accept the same records, for any bytes under an agent's key."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agentic import AgentInfo, AgentNotFoundError, AgentReplacedError, CorruptRecordError, RedisRegistry
from agentic.agent import status_of
from agentic.wire import MAX_DEPTH, MAX_STORED_BYTES
from tests.support.stores import RedisStore

OLD = "2020-01-01T00:00:00.000000Z"
OWN = (
    '{"id":"x","name":"n","capabilities":["go","a b"],"status":"busy","last_heartbeat":"'
    + OLD
    + '","current_load":1,"max_load":20,"metadata":{"k":"v","é":"漢"},"unready":"lädt"}'
)
NUMBER = 1_764_512_345_678_901
"""An incarnation."""

FIELDS = {
    "id": ['"x"', r'"\u0078"', '"y"', "1", "null"],
    "name": ['"n"', "null", "1", "[]", '"é漢😀"', r'"\ud83d\ude00"', r'"\ud800"', r'"\udc00"', r'"\x"', '"\t"', '"\x7f"'],
    "capabilities": ["[]", "null", '["a"]', '["a","b" ]', '["a",1]', "[null]", '[["a"]]', '["a",]', '["a""b"]', '"a"'],
    "status": ['"busy"', '"offline"', r'"offlin\u0065"', '"draining"', '""', "null", "0", '["busy"]'],
    "last_heartbeat": [
        f'"{OLD}"', '"2020-01-01T00:00:00Z"', '"2020-01-01t02:00:00.123456789+0200"', '"2020-01-01 00:00:00-23:59"', '""',
        "null", "0", '"2020-02-30T00:00:00.000000Z"', '"2020-13-01T00:00:00.000000Z"', '"2020-01-01T24:00:00.000000Z"',
        '"9999-12-31T23:59:59.9999995Z"', '"9999-12-31T23:59:59.99999949999999999999Z"', '"0000-01-01T00:00:00.000000Z"', '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59.9999999Z"',
        '"2020-01-01T00:00:00"', '"2020-01-01T00:00:60Z"', '"2020-01-01T00:00:00.Z"', r'"2020-01-01T00:00:00.00000\u0030Z"',
        '"10000-01-01T00:00:00.00000Z"', '"2020-01-01T00:00:00+24:00"', '"2020-01-01"',
    ],
    "current_load": ["0", "-0", "7", "-5", "1" + "0" * 400, "1" + "0" * 5000, "01", "1.0", "1e2", "null", '"1"', "true", "-"],
    "metadata": ["{}", "null", '{"a":"b"}', '{"a":1,"b":[null]}', '{"a" : "b"}', '{"a":"b",}', '{a:1}', '["a"]', '{"":{}}'],
    "unready": ['""', '"x"', "null", "1", '"\t"', r'"\""', '"\xff"'],
    "before_offline": ['"busy"', '"offline"', '""', '"d\xc3\xa9"', r'"\u0062usy"', "null", "1", '["busy"]', "{"],
    "incarnation": [
        str(NUMBER), str(NUMBER + 1), str(NUMBER - 1), f"{NUMBER}.0", f"{NUMBER}e0", f"0{NUMBER}", f"-{NUMBER}", f"{NUMBER}0", f'"{NUMBER}"',
        "0", "7", "-1", "1.5", "null", "true", "[]", "9007199254740991", "9007199254740992", "1" + "0" * 400, '"x"', "999999999999999",
    ],
    "unknown": ["NaN", "1e400", "1" + "0" * 400 + ".5", "0.5e-7", "tru", '"\\ud800"', "[[],[{}]]", "{", '"\xed\xa0\x80"'],
}  # fmt: skip


YESTERDAY = datetime.now(UTC) - timedelta(days=1)
"""Heartbeats here are before this time, or in the server's future; those read as now."""


def without_future(agent: AgentInfo) -> AgentInfo:
    """Return the agent with a heartbeat that does not depend on the time of the read."""
    heartbeat = agent.last_heartbeat
    return replace(agent, last_heartbeat=None) if heartbeat is not None and heartbeat > YESTERDAY else agent


def before_offline(record: bytes) -> str:
    """Return the status that a heartbeat gives back to an offline agent."""
    kept = json.loads(record).get("before_offline")
    return kept if isinstance(kept, str) and kept not in ("", "offline") else "available"


async def fenced_heartbeat(registry: RedisRegistry) -> str:
    try:
        beat = await registry.heartbeat("x", incarnation=NUMBER)
    except AgentNotFoundError:
        return "absent"
    except AgentReplacedError:
        return "replaced"
    return "rewritten" if beat.rewritten else "same"


def expected_of_fenced_heartbeat(stored: int) -> str:
    if stored in (0, NUMBER):
        return "same" if stored else "rewritten"
    return "replaced" if stored > NUMBER else "absent"


async def assert_agreement(store: RedisStore, registry: RedisRegistry, record: bytes) -> bool:
    """Return whether a record is a valid agent; every call must agree."""
    key = f"{store.prefix}:agent:x"

    async def attempt(call: Any) -> Any:
        store.client.set(key, record)
        try:
            return await call()
        except CorruptRecordError:
            assert store.client.get(key) == record
            return None

    read = await attempt(lambda: registry.get("x"))
    listed = await attempt(registry.list)
    assert list(map(without_future, listed)) == ([] if read is None else [without_future(read)])
    fenced = await attempt(lambda: fenced_heartbeat(registry))
    assert fenced == (None if read is None else expected_of_fenced_heartbeat(read.incarnation))
    if fenced in ("absent", "replaced"):
        assert store.client.get(key) == record
    beaten = await attempt(lambda: registry.heartbeat_many(["x"]))
    assert (beaten is None) is (read is None)
    if read is not None:
        after = await registry.get("x")
        assert after.status == (status_of(before_offline(record)) if read.status == "offline" else read.status)
        assert after.last_heartbeat > read.last_heartbeat
    updated = await attempt(lambda: registry.update("x", max_load=3))
    assert (updated is None) is (read is None)
    if read is not None:
        assert without_future(await registry.get("x")) == without_future(updated)
        assert updated.max_load == 3
    reaped = await attempt(lambda: registry.reap(60))
    is_silent = read is not None and read.last_heartbeat < YESTERDAY
    assert reaped == (["x"] if is_silent and read.status != "offline" else [])
    if read is None:
        assert store.client.get(key) == record
    elif is_silent:
        assert (await registry.get("x")).status == "offline"
        assert await registry.reap(60) == []
    return read is not None


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values])
async def test_calls_agree_on_a_value(redis_store: RedisStore, name: str, value: str) -> None:
    fields = {"id": '"x"', "name": '"n"', "status": '"busy"', "last_heartbeat": f'"{OLD}"', "current_load": "1"}
    fields |= {"max_load": "20", name: value}
    record = "{" + ",".join(f'"{each}":{fields[each]}' for each in fields) + "}"
    async with redis_store.make() as registry:
        is_agent = await assert_agreement(redis_store, registry, record.encode("utf-8", "surrogatepass"))
        # If a field occurs twice the last one counts, however its name is escaped.
        again = record[:-1] + f',"\\u{ord(name[0]):04x}{name[1:]}":{fields[name]}' + "}"
        assert await assert_agreement(redis_store, registry, again.encode("utf-8", "surrogatepass")) is is_agent


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, 100_000])
async def test_calls_agree_on_how_deep_a_record_may_be(redis_store: RedisStore, depth: int) -> None:
    record = b'{"id":"x","a":' + b"[" * depth + b"]" * depth + b"}"
    async with redis_store.make() as registry:
        assert await assert_agreement(redis_store, registry, record) is (depth < MAX_DEPTH)


@pytest.mark.parametrize("size", [MAX_STORED_BYTES - 100, MAX_STORED_BYTES + 1])
async def test_calls_agree_on_how_long_a_record_may_be(redis_store: RedisStore, size: int) -> None:
    async with redis_store.make() as registry:
        is_agent = await assert_agreement(redis_store, registry, b'{"id":"x","max_load":1}'.ljust(size))
    assert is_agent is (size < MAX_STORED_BYTES)


async def test_no_call_makes_a_record_too_long_to_be_read(redis_store: RedisStore) -> None:
    record = b'{"id":"x"}'.ljust(MAX_STORED_BYTES)
    redis_store.client.set(f"{redis_store.prefix}:agent:x", record)
    async with redis_store.make() as registry:
        with pytest.raises(CorruptRecordError):
            await registry.heartbeat("x")
        assert await registry.reap(60) == []
        assert (await registry.get("x")).id == "x"
    assert redis_store.client.get(f"{redis_store.prefix}:agent:x") == record


@pytest.mark.parametrize(("odd", "instead"), list(enumerate([b"", b'"', b",", b"6", b"\xc3", b"}"])))
async def test_calls_agree_on_the_own_form_with_any_byte_damaged(
    redis_store: RedisStore, odd: int, instead: bytes
) -> None:
    own = OWN.replace('"name":"n"', '"name":"ñ"').encode()
    short = own[: own.index(b',"metadata"')] + b"}"
    numbered = short[:-1] + f',"incarnation":{NUMBER}'.encode() + b"}"
    async with redis_store.make() as registry:
        for record, first in (
            (own, 0),
            (short, short.index(b"current_load")),
            (numbered, short.index(b"max_load")),
        ):
            assert await assert_agreement(redis_store, registry, record)
            for at in range(first + odd % 2, len(record), 2):  # Each byte is damaged in three of the six ways.
                await assert_agreement(redis_store, registry, record[:at] + instead + record[at + 1 :])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A record of this library with a few bytes changed, inserted or removed."""
    record = bytearray(
        draw(
            st.sampled_from(
                [
                    OWN,
                    f'{OWN[:-1]},"incarnation":{NUMBER}}}',
                    OWN.replace('"capabilities":["go","a b"],', ""),
                    json.dumps(json.loads(OWN)),
                ]
            )
        ).encode()
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(record) - 1))
        length = draw(st.integers(0, 2))
        record[at : at + length] = draw(
            st.sampled_from(
                [b"", b'"', b",", b"\\", b"{", b"}", b"]", b"0", b"\xff", b"\xc3\xa9", b" ", b"\n", b":", b"null"]
            )
        )
    return bytes(record)


@settings(max_examples=150)
@given(record=damaged())
async def test_calls_agree_on_damaged_records(redis_store: RedisStore, record: bytes) -> None:
    async with redis_store.make() as registry:
        await assert_agreement(redis_store, registry, record)


async def test_the_own_form_is_stamped_without_being_parsed(redis_store: RedisStore) -> None:
    """The fast script keeps the record's length and its other bytes."""
    async with redis_store.make() as registry:
        await registry.register(AgentInfo("x", name="é漢", capabilities=("a", "b"), metadata={"k": "v"}))
        key = f"{redis_store.prefix}:agent:x"
        before: Any = redis_store.client.get(key)
        calls = redis_store.client.info("commandstats")["cmdstat_setrange"]["calls"]
        await registry.heartbeat("x")
        after: Any = redis_store.client.get(key)
        assert redis_store.client.info("commandstats")["cmdstat_setrange"]["calls"] == calls + 1
    assert len(before) == len(after)
    assert json.loads(before) | {"last_heartbeat": None} == json.loads(after) | {"last_heartbeat": None}

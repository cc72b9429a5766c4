"""The JSON form: exact on the way out, tolerant on the way in."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agentic import AgentInfo, AgentStatus, Drain, InvalidAgentError, Page
from agentic.clock import NEVER
from agentic.incarnations import LOWEST
from agentic.validation import MAX_RECORD_BYTES, valid_agent
from agentic.wire import CorruptRecord, decode_agent, encode_agent
from tests.support.documents import GO_RECORDS

texts = st.text(st.characters(codec="utf-8"), max_size=20)
agents = st.builds(
    AgentInfo,
    id=texts.filter(bool),
    name=texts,
    capabilities=st.lists(texts, max_size=4).map(tuple),
    status=st.sampled_from(AgentStatus),
    last_heartbeat=st.datetimes(timezones=st.just(UTC)),
    current_load=st.integers(0, 2**63 - 1),
    max_load=st.integers(0, 2**63 - 1),
    metadata=st.dictionaries(texts, texts, max_size=4),
    unready=texts,
)


@given(agents)
def test_what_is_encoded_is_decoded_the_same(agent: AgentInfo) -> None:
    assert valid_agent(agent) == agent
    assert decode_agent(encode_agent(agent)) == agent


@given(agents.map(lambda agent: replace(agent, last_heartbeat=None)))
def test_a_checked_agent_equals_the_given_one(agent: AgentInfo) -> None:
    checked = valid_agent(agent)
    assert checked == agent
    assert hash(checked) == hash(agent)


@given(agents)
def test_an_agent_is_copied_pickled_and_encoded_as_it_is(agent: AgentInfo) -> None:
    for each in (copy.copy(agent), copy.deepcopy(agent), pickle.loads(pickle.dumps(agent)), replace(agent)):
        assert each == agent
        assert hash(each) == hash(agent)
        assert type(each.metadata) is type(agent.metadata)
    assert msgspec.to_builtins(agent)["metadata"] == json.loads(json.dumps(agent.metadata)) == dict(agent.metadata)
    assert msgspec.convert(msgspec.to_builtins(agent), AgentInfo) == agent


MUTATIONS: list[Callable[[Any], object]] = [
    lambda metadata: metadata.__setitem__("k", "x"),
    lambda metadata: metadata.__delitem__("k"),
    lambda metadata: metadata.__ior__({"k": "x"}),
    lambda metadata: metadata.update(k="x"),
    lambda metadata: metadata.setdefault("l", "x"),
    lambda metadata: metadata.pop("k"),
    lambda metadata: metadata.popitem(),
    lambda metadata: metadata.clear(),
]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_metadata_cannot_be_changed(mutate: Callable[[Any], object]) -> None:
    made = AgentInfo("a", metadata={"k": "v"})
    for agent in (made, decode_agent(encode_agent(made)), replace(made, metadata={"k": "v"}), copy.copy(made)):
        with pytest.raises(TypeError, match="cannot be changed"):
            mutate(agent.metadata)
        assert agent.metadata == {"k": "v"}
        assert dict(agent.metadata) | {"k": "x"} == {"k": "x"}


def test_no_field_can_be_set_and_lists_become_tuples() -> None:
    capabilities = ["go"]
    agent = AgentInfo("a", capabilities=capabilities, metadata=MappingProxyType({"k": "v"}))
    with pytest.raises(AttributeError):
        agent.id = "b"  # type: ignore[misc]
    assert {agent: 1}[AgentInfo("a", capabilities=("go",), metadata={"k": "v"})] == 1
    assert replace(agent, capabilities=capabilities).capabilities == ("go",)


def test_a_status_that_is_none_is_an_error_for_callers_and_unknown_when_read() -> None:
    with pytest.raises(ValueError, match="availble"):
        AgentStatus("availble")
    assert decode_agent('{"id":"a","status":"availble"}').status is AgentStatus.UNKNOWN


@given(st.integers(0, 20_000), st.integers(0, 256))
def test_whatever_is_accepted_has_a_record_of_at_most_64_kib(controls: int, capabilities: int) -> None:
    agent = AgentInfo("a", name="\0" * controls, capabilities=("\0" * 20,) * capabilities)
    size = len(encode_agent(replace(agent, incarnation=LOWEST)))
    if size <= MAX_RECORD_BYTES:
        assert valid_agent(agent) == agent
    else:
        with pytest.raises(InvalidAgentError, match=f"got {size}"):
            valid_agent(agent)


@given(agents)
def test_the_record_has_the_original_fields_in_their_order(agent: AgentInfo) -> None:
    record = json.loads(encode_agent(agent))
    names = [
        "id",
        "name",
        "capabilities",
        "status",
        "last_heartbeat",
        "current_load",
        "max_load",
        "metadata",
        "unready",
    ]
    omitted = ("capabilities", "metadata", "unready")
    assert list(record) == [name for name in names if name not in omitted or getattr(agent, name)]
    assert datetime.fromisoformat(record.pop("last_heartbeat")) == agent.last_heartbeat
    assert all(record[name] == _plain(getattr(agent, name)) for name in record)


def test_an_agent_that_is_ready_is_neither_offline_nor_unready_nor_drained() -> None:
    assert AgentInfo("a").ready
    assert AgentInfo("a", status="busy", current_load=9, max_load=1).ready
    assert not AgentInfo("a", status="offline").ready
    assert not AgentInfo("a", unready="loading").ready
    assert not AgentInfo("a", draining=Drain("r", "", NEVER)).ready


def test_what_is_free_is_left_of_the_most_work() -> None:
    assert AgentInfo("a", current_load=5).free == math.inf
    assert AgentInfo("a", current_load=1, max_load=4).free == 3
    assert AgentInfo("a", current_load=1, max_load=4, claimed=2).free == 1
    assert AgentInfo("a", current_load=9, max_load=4).free == 0


def test_new_agents_of_a_role_have_different_ids() -> None:
    one, other = AgentInfo.new("planner", capabilities=["plan"]), AgentInfo.new("planner", name="n", max_load=2)
    assert re.fullmatch(rf"planner:{re.escape(socket.gethostname())}:[0-9a-f]{{8}}", one.id)
    assert one.id != other.id
    assert (one.name, one.capabilities, other.name, other.max_load) == ("planner", ("plan",), "n", 2)


def test_what_stores_fill_in_is_neither_registered_nor_written() -> None:
    filled = AgentInfo("a", incarnation=LOWEST, draining=Drain("r", "", NEVER), claimed=3)
    assert valid_agent(filled) == AgentInfo("a")
    assert b"draining" not in encode_agent(filled)
    assert b"claimed" not in encode_agent(filled)
    for field in (
        '"draining":{"reason":"r","by":"","drained_at":"2026-01-01T00:00:00Z"}',
        '"claimed":3',
        '"draining":5',
    ):
        record = f'{{"id":"a","last_heartbeat":"2026-01-01T00:00:00Z",{field}}}'.encode()
        assert decode_agent(record) == AgentInfo("a", last_heartbeat=datetime(2026, 1, 1, tzinfo=UTC))


def test_the_form_of_a_record() -> None:
    agent = AgentInfo(
        "a",
        capabilities=("go",),
        last_heartbeat=datetime(2026, 1, 2, tzinfo=UTC),
        metadata={"k": "v"},
        unready="loading",
    )
    assert encode_agent(agent) == (
        b'{"id":"a","name":"","capabilities":["go"],"status":"available","last_heartbeat":"2026-01-02T00:00:00.000000Z",'
        b'"current_load":0,"max_load":0,"metadata":{"k":"v"},"unready":"loading"}'
    )
    assert encode_agent(AgentInfo("a")) == (
        b'{"id":"a","name":"","status":"available","last_heartbeat":"0001-01-01T00:00:00.000000Z",'
        b'"current_load":0,"max_load":0}'
    )


def test_every_record_of_the_go_original_is_read() -> None:
    found = {agent.id: agent for agent in map(decode_agent, GO_RECORDS)}
    assert len(found) == len(GO_RECORDS) == 8
    at = datetime(2026, 2, 20, 11, 40, 46, tzinfo=UTC)
    assert found["nanoseconds"] == AgentInfo(
        "nanoseconds", "nine digits", ("go", "testing"), AgentStatus.AVAILABLE, at.replace(microsecond=123457), 2, 5
    )
    assert found["zero-time"].last_heartbeat == NEVER
    assert (found["no-status"].status, found["no-status"].last_heartbeat) == (AgentStatus.UNKNOWN, NEVER)
    assert found["whole-second"].last_heartbeat == at
    assert found["trimmed"].last_heartbeat == at.replace(microsecond=500000)
    assert found["offset"].last_heartbeat == at.replace(microsecond=250000)
    assert found["offset"].last_heartbeat.tzinfo is UTC
    escapes = found['escapes <&> " \\ /']
    assert escapes.name == 'q"uo,"last_heartbeat":"x","status":"offline'
    assert escapes.capabilities == ("a<b>", "last_heartbeat", '"status":"offline"', "日本")
    assert escapes.max_load == 2**63 - 1
    foreign = found["glob*[x]?:1\n"]
    assert (foreign.name, foreign.status, foreign.current_load) == ("line\u2028separator", AgentStatus.UNKNOWN, -1)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"id":"a"}', AgentInfo("a", last_heartbeat=NEVER)),
        ('{"id":"a","capabilities":null,"metadata":null,"name":null}', AgentInfo("a", last_heartbeat=NEVER)),
        ('{"id":"a","color":{"status":"busy"},"status":"offline"}', AgentInfo("a", status=AgentStatus.OFFLINE, last_heartbeat=NEVER)),
        ('{"id":"a","status":null,"current_load":null}', AgentInfo("a", status=AgentStatus.UNKNOWN, last_heartbeat=NEVER)),
        ('{"id":"a","last_heartbeat":""}', AgentInfo("a", last_heartbeat=NEVER)),
        ('{"id":"a","last_heartbeat":null}', AgentInfo("a", last_heartbeat=NEVER)),
        ('{"id":"a","last_heartbeat":"0001-01-01T00:00:00+01:00"}', AgentInfo("a", last_heartbeat=NEVER)),
        (
            '{"id":"a","last_heartbeat":"9999-12-31T23:59:59-01:00"}',
            AgentInfo("a", last_heartbeat=datetime.max.replace(tzinfo=UTC)),
        ),
        (
            '{"id":"a","last_heartbeat":"2026-01-01T00:00:00Z","metadata":{"a":1,"b":[true],"c":"x"}}',
            AgentInfo("a", last_heartbeat=datetime(2026, 1, 1, tzinfo=UTC), metadata={"a": "1", "b": "[true]", "c": "x"}),
        ),
        (' {"status" : "busy" ,\n"id":"a"} ', AgentInfo("a", status=AgentStatus.BUSY, last_heartbeat=NEVER)),
    ],
)  # fmt: skip
def test_what_other_writers_leave_is_read(written: str, read: AgentInfo) -> None:
    found = decode_agent(written)
    assert found == read
    assert found.last_heartbeat is not None
    assert found.last_heartbeat.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "record",
    [
        b"", b"null", b"[]", b'"a"', b"{}", b'{"name":"no id"}', b'{"id":1}', b'{"id":"a"', b'{"id":"a"}x', b'{"id":"\xff"}',
        b'{"id":"a","capabilities":{}}', b'{"id":"a","capabilities":[1]}', b'{"id":"a","status":1}', b'{"id":"a","current_load":"1"}',
        b'{"id":"a","current_load":1.5}', b'{"id":"a","metadata":[]}', b'{"id":"a","last_heartbeat":1}', b'{"id":"a","last_heartbeat":"x"}',
        b'{"id":"a","last_heartbeat":"2026-01-01T00:00:00"}', b'{"id":"a","x":' + b"[" * 100_000, b'{"id":"a","capabilities":[null]}',
    ],
)  # fmt: skip
def test_what_is_no_record_is_corrupt(record: bytes) -> None:
    with pytest.raises(CorruptRecord):
        decode_agent(record)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


# --- as other libraries see it ---


@given(agents)
def test_to_dict_has_every_field_as_json_has_it(agent: AgentInfo) -> None:
    fields = agent.to_dict()
    assert list(fields) == list(AgentInfo.__struct_fields__)
    assert json.loads(json.dumps(fields)) == fields
    assert AgentInfo(**fields | {"last_heartbeat": agent.last_heartbeat}) == agent
    assert datetime.fromisoformat(fields["last_heartbeat"]) == agent.last_heartbeat
    fields["metadata"]["k"] = "a copy to change"


class Fleet(pydantic.BaseModel):
    """A model of a user's own that holds agents."""

    agents: list[AgentInfo]


@given(st.lists(agents, max_size=3))
def test_pydantic_reads_what_it_wrote(some: list[AgentInfo]) -> None:
    fleet = Fleet(agents=some)
    assert fleet.agents == some
    assert Fleet.model_validate_json(fleet.model_dump_json()) == fleet
    assert Fleet.model_validate(fleet.model_dump()) == fleet
    assert Fleet.model_validate({"agents": [agent.to_dict() for agent in some]}) == fleet


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, ("id",)),
        ({"id": 5}, ("id",)),
        ({"id": "a", "status": "idle"}, ("status",)),
        ({"id": "a", "capabilities": "go"}, ("capabilities",)),
        ({"id": "a", "metadata": {"k": 5}}, ("metadata", "k")),
        ({"id": "a", "capability": ["go"]}, ("capability",)),
    ],
)
def test_pydantic_names_the_field_that_is_wrong(fields: dict[str, object], place: tuple[str, ...]) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Fleet.model_validate({"agents": [fields]})
    (error,) = caught.value.errors()
    assert error["loc"] == ("agents", 0, *place)


def test_pydantic_describes_every_field() -> None:
    for mode in ("validation", "serialization"):
        described = pydantic.TypeAdapter(AgentInfo).json_schema(mode=mode)
        assert list(described["properties"]) == list(AgentInfo.__struct_fields__)
    assert described["required"] == list(AgentInfo.__struct_fields__)


def test_the_text_of_a_status_becomes_the_status() -> None:
    assert type(AgentInfo("a", status="busy").status) is AgentStatus
    with pytest.raises(
        InvalidAgentError, match="^status: must be one of available, busy, offline, unknown, got 'idle'$"
    ):
        valid_agent(AgentInfo("a", status="idle"))  # type: ignore[arg-type]


def test_a_page_is_immutable_and_can_be_sent_as_json() -> None:
    page = Page((AgentInfo("a"),), "cursor")
    with pytest.raises(AttributeError):
        page.cursor = None  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(page), type=Page) == page

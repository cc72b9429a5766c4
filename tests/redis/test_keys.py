"""The keys of a registry: their names, and that no other registry has the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from agentic import AgentInfo, ConfigurationError, RedisRegistry
from agentic.backends.redis.keys import SHARDS, SLOTS, Keys, ShardedKeys, by_family, family_of, id_in
from tests.support.redis_fleet import RedisCluster
from tests.support.stores import RedisStore

IDS = [f"agent-{number}" for number in range(2_000)]

prefixes = st.text(st.sampled_from("a:gent*{}é"), min_size=1, max_size=8).filter(
    lambda text: ":agent:" not in text + ":"
)
agent_ids = st.text(st.sampled_from("a:gent*{}é"), min_size=1, max_size=12)


@pytest.mark.parametrize("prefix", ["a:agent:b", "a:agent", ":agent:", ":agent", "a:agent:agent", "a:agent:"])
def test_a_prefix_that_could_produce_the_keys_of_another_one_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="^prefix: must neither contain ':agent:' nor end with ':agent'"):
        RedisRegistry(prefix=prefix)


@pytest.mark.parametrize("url", ["redis://localhost", "redis+cluster://localhost"])
def test_a_prefix_that_is_refused_is_not_shown(url: str) -> None:
    for prefix in ("s3cr3t:agent", "{s3cr3t:agent:}"):
        with pytest.raises(ConfigurationError) as caught:
            RedisRegistry(url, prefix=prefix)
        assert "s3cr3t" not in str(caught.value)


@given(prefixes, agent_ids, prefixes, agent_ids)
def test_no_key_is_the_same_under_two_prefixes(prefix: str, agent_id: str, other: str, other_id: str) -> None:
    key = Keys(prefix).agent(agent_id)
    assert (key == Keys(other).agent(other_id)) == ((prefix, agent_id) == (other, other_id))
    assert (family_of(key), id_in(key)) == (prefix.encode(), agent_id)


def test_a_prefix_with_braces_is_refused_only_in_a_cluster() -> None:
    RedisRegistry(prefix="{team}")
    for prefix in ("{team}", "team}", "{", "a{b"):
        with pytest.raises(ConfigurationError, match="^prefix: must not contain braces in a cluster"):
            RedisRegistry("redis+cluster://localhost", prefix=prefix)


@pytest.mark.parametrize(("shard", "family", "slot"), [(0, 62, 433), (1, 50, 532), (2, 2, 1127), (31, 2, 16_357)])
def test_the_families_of_the_default_prefix(shard: int, family: int, slot: int) -> None:
    key = ShardedKeys("agentic").agent(next(each for each in IDS if ShardedKeys("agentic").slot(each) == slot))
    assert key.startswith(f"{{agentic:{shard}.{family}}}:agent:".encode())
    assert key_slot(key) == slot


@pytest.mark.parametrize("prefix", ["agentic", "é", "a:b*", "a" * 1_000])
def test_families_are_spread_evenly_over_the_slots(prefix: str) -> None:
    keys = ShardedKeys(prefix)
    agents = keys.agents(IDS)
    assert agents == [keys.agent(agent_id) for agent_id in IDS]
    slots = [key_slot(key) for key in agents]
    assert slots == [keys.slot(agent_id) for agent_id in IDS]
    assert sorted(slot * SHARDS // SLOTS for slot in set(slots)) == list(range(SHARDS))
    assert max(Counter(slots).values()) < 3 * len(IDS) / SHARDS
    groups = by_family(agents)
    assert sorted(at for group in groups for at in group) == list(range(len(IDS)))
    assert [len({slots[at] for at in group}) for group in groups] == [1] * SHARDS


def test_only_the_keys_of_this_prefix_are_kept_from_a_scan() -> None:
    short, long = ShardedKeys("a"), ShardedKeys("a:0.1")
    own, others = short.agents(IDS), long.agents(IDS)
    another_family = own[0].replace(b"}", b"1}")
    assert list(short.own([*own, *others, another_family, b"{a:}:agent:x", b"{a:0.0}:agent:x"])) == own
    assert list(long.own(own + others)) == others


async def test_agents_of_a_longer_prefix_in_a_cluster_are_left_alone(redis_cluster: RedisCluster) -> None:
    url = redis_cluster.url
    async with RedisRegistry(url, prefix="short") as short, RedisRegistry(url, prefix="short:0.1") as long:
        await short.register(AgentInfo("x", name="short"))
        await long.register(AgentInfo("x", name="long"))
        assert [agent.name for agent in await short.list()] == ["short"]
        assert await short.reap(0) == ["x"]
        assert await short.flush() == 1
        assert short.corrupt_records == 0
        assert [(agent.name, agent.status) for agent in await long.list()] == [("long", "available")]
        assert await long.flush() == 1


async def test_keys_of_a_longer_prefix_of_a_go_program_are_left_alone(redis_store: RedisStore) -> None:
    inner, record = f"{redis_store.prefix}:agent:inner:agent:x", b'{"id":"x","status":"busy"}'
    redis_store.client.set(inner, record)
    async with redis_store.make() as registry:
        await registry.register(AgentInfo("x"))
        assert [agent.name for agent in await registry.list()] == [""]
        assert await registry.reap(0) == ["x"]
        assert await registry.flush() == 1
    assert redis_store.client.get(inner) == record

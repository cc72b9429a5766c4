"""Sessions: registration, heartbeats, updates, outages and deregistration."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import anyio
import pytest

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentReplacedError,
    AgentStatus,
    BackendError,
    ConfigurationError,
    InvalidAgentError,
    MemoryRegistry,
    RedisRegistry,
    RegistryClosedError,
)
from agentic.backends.memory import MemoryBackend
from agentic.presence import jittered
from agentic.testing import FakeClock, RedisServer, StoreUnderTest, wait_until
from tests.support.stores import LONG_AGO, SHARED_STORES, RedisStore
from tests.support.waiting import is_registered

QUICK = 0.02


async def test_a_session_registers_beats_and_deregisters(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a", name="n"), interval=QUICK) as session:
        assert session.healthy
        first = await registry.get("a")
        assert first.name == "n"
        assert session.last_beat_at is not None
        started_at = session.last_beat_at

        async def beaten() -> bool:
            return (await registry.get("a")).last_heartbeat > first.last_heartbeat  # type: ignore[operator]

        await wait_until(beaten, "a heartbeat was stamped")
        await wait_until(lambda: session.last_beat_at > started_at, "the session knows")  # type: ignore[operator]
    assert not await is_registered(registry)
    assert not session.healthy


async def test_a_session_brings_its_agent_back_from_offline(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a"), interval=QUICK):
        await registry.reap(0)

        async def available() -> bool:
            return (await registry.get("a")).status is AgentStatus.AVAILABLE

        await wait_until(available, "the agent is available again")


async def test_a_lost_agent_is_registered_again_with_its_updates(
    registry: AgentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with registry.session(AgentInfo("a", name="n", metadata={"k": "v"}), interval=QUICK) as session:
        await session.update(status=AgentStatus.BUSY, current_load=3)
        updated = await session.update(capabilities=("go",))
        assert (updated.current_load, updated.capabilities) == (3, ("go",))
        await registry.flush()
        await wait_until(lambda: is_registered(registry), "the agent is there again")
        found = await registry.get("a")
        assert (found.name, found.status, found.current_load) == ("n", AgentStatus.BUSY, 3)
        assert (found.capabilities, found.metadata) == (("go",), {"k": "v"})
    assert "registered again" in caplog.text


async def test_an_update_of_a_lost_agent_registers_it_with_the_change(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a", name="n"), interval=60) as session:
        await registry.flush()
        updated = await session.update(current_load=3)
        assert (updated.name, updated.current_load) == ("n", 3)
        assert await registry.get("a") == updated


async def test_concurrent_updates_are_all_kept(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a"), interval=60) as session:
        await asyncio.gather(session.update(name="n"), session.update(current_load=3), session.update(max_load=5))
        assert (session.agent.name, session.agent.current_load, session.agent.max_load) == ("n", 3, 5)
        await registry.flush()
        await session.update(status=AgentStatus.BUSY)
        found = await registry.get("a")
        assert (found.name, found.current_load, found.max_load) == ("n", 3, 5)


async def test_an_invalid_update_changes_nothing() -> None:
    async with MemoryRegistry() as registry, registry.session(AgentInfo("a")) as session:
        with pytest.raises(InvalidAgentError, match="current_load"):
            await session.update(current_load=-1)
        with pytest.raises(TypeError):
            await session.update(id="b")  # type: ignore[call-arg]
        assert session.agent == AgentInfo("a")


async def test_changing_objects_of_the_caller_does_not_change_the_store(registry: AgentRegistry) -> None:
    given = {"team": "blue"}
    async with registry.session(AgentInfo("a", metadata=given), interval=QUICK) as session:
        given["team"] = "red"
        for agent in (session.agent, await registry.get("a"), await session.update(current_load=1)):
            with pytest.raises((TypeError, AttributeError)):
                agent.metadata["team"] = "red"  # type: ignore[index]
            with pytest.raises(AttributeError):
                agent.name = "another"  # type: ignore[misc]
        await registry.deregister("a")
        await wait_until(lambda: is_registered(registry), "it is registered again")
        found = await registry.get("a")
    assert (found.metadata, found.name) == ({"team": "blue"}, "")


# --- leaving ---


async def test_an_exception_of_the_body_is_raised_unchanged(registry: AgentRegistry) -> None:
    original = KeyError("body")
    with pytest.raises(KeyError) as caught:
        async with registry.session(AgentInfo("a"), interval=QUICK):
            raise original
    assert caught.value is original
    assert not await is_registered(registry)


async def in_session(registry: AgentRegistry, entered: asyncio.Event) -> None:
    async with registry.session(AgentInfo("a"), interval=QUICK):
        entered.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("times", [1, 4])
async def test_a_cancelled_session_deregisters(registry: AgentRegistry, times: int) -> None:
    entered = asyncio.Event()
    task = asyncio.create_task(in_session(registry, entered))
    await entered.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await is_registered(registry)


async def test_a_session_in_a_cancelled_scope_deregisters(registry: AgentRegistry) -> None:
    with anyio.CancelScope() as scope:
        async with registry.session(AgentInfo("a"), interval=QUICK):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not await is_registered(registry)


async def test_a_session_that_times_out_deregisters(registry: AgentRegistry) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), registry.session(AgentInfo("a"), interval=QUICK):
            await asyncio.Event().wait()
    assert not await is_registered(registry)


@pytest.mark.parametrize("iterations", range(12))
async def test_a_session_cancelled_on_entry_leaves_no_agent(registry: AgentRegistry, iterations: int) -> None:
    task = asyncio.create_task(in_session(registry, asyncio.Event()))
    for _ in range(iterations):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await is_registered(registry)


async def test_an_agent_that_is_gone_on_exit_is_no_error(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a"), interval=60):
        await registry.deregister("a")


class Failing(MemoryBackend):
    """A store whose calls can be made to raise."""

    heartbeat_error: Exception | None = None
    deregister_error: Exception | None = None
    register_error: Exception | None = None

    async def touch(self, ids: Any) -> Any:
        if self.heartbeat_error:
            raise self.heartbeat_error
        return await super().touch(ids)

    async def delete(self, ids: Any) -> Any:
        if self.deregister_error:
            raise self.deregister_error
        return await super().delete(ids)

    async def insert(self, agents: Any) -> Any:
        if self.register_error:
            raise self.register_error
        return await super().insert(agents)


async def test_a_bug_in_the_heartbeat_cancels_the_body_and_is_raised_unchanged() -> None:
    failing = Failing()
    async with AgentRegistry(failing) as registry:
        failing.heartbeat_error = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError) as caught:
            async with registry.session(AgentInfo("a"), interval=QUICK):
                await asyncio.Event().wait()
        assert any(entry.name == "touch" for entry in caught.traceback)  # The traceback is kept.
        assert not await is_registered(registry)


async def test_a_store_failure_on_entry_raises_and_starts_no_session() -> None:
    failing = Failing()
    async with AgentRegistry(failing) as registry:
        failing.register_error = BackendError("down")
        failing.deregister_error = ZeroDivisionError()  # would come out if the session tried to deregister
        with pytest.raises(BackendError, match="down"):
            async with registry.session(AgentInfo("a")):
                pytest.fail("the body ran")


async def test_a_store_failure_on_exit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing()
    async with AgentRegistry(failing) as registry:
        failing.deregister_error = BackendError("down")
        async with registry.session(AgentInfo("a")):
            pass
    assert "could not be deregistered and will go offline: down" in caplog.text


async def test_an_outage_does_not_end_the_session(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentic")
    async with RedisRegistry(own_redis_server.url, timeout=0.5) as registry:
        async with registry.session(AgentInfo("a", name="n"), interval=QUICK) as session:
            own_redis_server.stop()
            await wait_until(lambda: not session.healthy, "the session sees the outage")
            with pytest.raises(BackendError):
                await session.update(name="lost")
            beaten_at = session.last_beat_at
            own_redis_server.start()
            await wait_until(lambda: session.healthy, "the session sees the store again")
            assert session.last_beat_at > beaten_at  # type: ignore[operator]
            assert (await registry.get("a")).name == "n"
    outages = [
        record.message
        for record in caplog.records
        if "the store" in record.message and "session of agent 'a'" in record.message
    ]
    assert [("retrying" in text, "is back" in text) for text in outages] == [(True, False), (False, True)]


# --- intervals ---


async def test_the_interval_is_ten_seconds_or_a_third_of_stale_after_or_of_the_ttl(store: StoreUnderTest) -> None:
    assert store.make(ttl=None).session(AgentInfo("a")).interval == 10
    assert store.make(ttl=300).session(AgentInfo("a")).interval == 10
    assert store.make(ttl=6).session(AgentInfo("a")).interval == 2
    assert store.make(ttl=6, stale_after=3).session(AgentInfo("a")).interval == 1
    assert store.make(ttl=None, stale_after=12).session(AgentInfo("a")).interval == 4
    assert store.make(ttl=None, stale_after=60).session(AgentInfo("a")).interval == 10
    assert store.make(ttl=6).session(AgentInfo("a"), interval=timedelta(seconds=1)).interval == 1


@pytest.mark.parametrize(("interval", "warned"), [(None, 0), (10, 0), (11, 1)])
async def test_an_interval_that_is_too_long_for_reapers_logs_one_warning(
    interval: float | None, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with MemoryRegistry() as registry, registry.session(AgentInfo("a"), interval=interval):
        pass
    assert caplog.text.count("interval=11 s is longer than a third of the registry's stale_after=30 s") == warned
    assert len(caplog.records) == warned


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), True, "1", 6, 7])
def test_an_invalid_interval_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="^interval must"):
        MemoryRegistry(ttl=6).session(AgentInfo("a"), interval=wrong)


def test_an_invalid_agent_is_refused_before_the_session_starts() -> None:
    with pytest.raises(InvalidAgentError):
        MemoryRegistry().session(AgentInfo(""))


def test_the_pause_is_never_longer_than_the_interval() -> None:
    pauses = [jittered(10) for _ in range(1000)]
    assert 8 <= min(pauses) < max(pauses) <= 10
    assert max(pauses) - min(pauses) > 1


async def test_a_session_that_has_ended_does_not_bring_its_agent_back(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a"), interval=5) as session:
        late = [asyncio.create_task(session.update(current_load=n)) for n in range(5)]
        await asyncio.sleep(0)
    answers = await asyncio.gather(*late, return_exceptions=True)
    assert all(isinstance(answer, (AgentInfo, RegistryClosedError)) for answer in answers)
    with pytest.raises(RegistryClosedError, match="the session of agent 'a' is not open"):
        await session.update(current_load=9)
    assert await registry.list() == []


async def test_an_old_last_heartbeat_does_not_make_a_session_stale(registry: AgentRegistry) -> None:
    await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
    async with registry.session(await registry.get("a"), interval=5):
        assert await registry.reap(60) == []


async def test_a_body_that_closes_the_registry_still_raises_its_own_error() -> None:
    registry = MemoryRegistry()
    await registry.open()
    with pytest.raises(ZeroDivisionError):
        async with registry.session(AgentInfo("a"), interval=5):
            await registry.aclose()
            raise ZeroDivisionError


async def test_a_blocked_event_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "agentic")
    async with MemoryRegistry() as registry, registry.session(AgentInfo("a"), interval=QUICK):
        await asyncio.sleep(0)
        time.sleep(3 * QUICK)  # noqa: ASYNC251  blocks the loop on purpose
        await wait_until(lambda: "the event loop or the process was blocked" in caplog.text, "the session logs it")


async def test_a_session_blocked_for_longer_than_the_registrys_ttl_registers_again(
    redis_store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "agentic")
    async with redis_store.make(ttl=1) as registry, registry.session(AgentInfo("a", name="n")) as session:
        await session.update(current_load=3)
        time.sleep(2)  # noqa: ASYNC251  blocks the loop on purpose
        assert redis_store.client.keys(f"{redis_store.prefix}:agent:*") == []
        await wait_until(lambda: "was gone from the store and was registered again" in caplog.text, "it is logged")
        assert "the event loop or the process was blocked" in caplog.text
        assert session.healthy
        found = await registry.get("a")
        assert (found.name, found.current_load) == ("n", 3)


# --- corrupt records ---


async def test_a_session_replaces_its_agents_corrupt_record(
    redis_store: RedisStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_store.make() as registry, registry.session(AgentInfo("a", name="n"), interval=QUICK) as session:
        await session.update(current_load=3)
        await redis_store.corrupt("a")
        await wait_until(lambda: "replacing its corrupt record" in caplog.text, "the session registers it again")
        assert session.healthy
        found = await registry.get("a")
        assert (found.name, found.current_load) == ("n", 3)
    assert "the store fails" not in caplog.text


@pytest.mark.parametrize("store", SHARED_STORES, indirect=True)
async def test_an_update_replaces_a_corrupt_record(store: StoreUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    async with store.make() as registry, registry.session(AgentInfo("a", name="n"), interval=60) as session:
        await store.corrupt("a")
        updated = await session.update(current_load=3)
        assert (updated.name, updated.current_load) == ("n", 3)
        assert await registry.get("a") == updated
    assert "replacing its corrupt record" in caplog.text


# --- several starts of one agent ---


async def test_a_later_start_replaces_a_session(registry: AgentRegistry, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with registry.session(AgentInfo("a", name="old"), interval=QUICK) as old:
        async with registry.session(AgentInfo("a", name="new"), interval=QUICK) as new:
            assert new.incarnation > old.incarnation
            await asyncio.wait_for(old.replaced.wait(), 20)
            assert not old.healthy
            assert "agent 'a' was replaced by a later start of it: end this program" in caplog.text
            with pytest.raises(AgentReplacedError):
                await old.update(current_load=1)
            await old.aclose()
            assert (await registry.get("a")).name == "new"
            assert new.healthy
            assert not new.replaced.is_set()
        assert not await is_registered(registry)
    assert len(caplog.records) == 1


async def test_a_session_that_replaces_another_one_logs_it_at_once(
    registry: AgentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with registry.session(AgentInfo("a"), interval=5):
        assert caplog.records == []
        async with registry.session(AgentInfo("a"), interval=5):
            (record,) = caplog.records
    assert "agent 'a' was started again while another start of it was alive" in record.getMessage()


async def test_a_replaced_session_never_registers_again(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a", name="old"), interval=QUICK) as old:
        async with registry.session(AgentInfo("a", name="new"), interval=60):
            await asyncio.wait_for(old.replaced.wait(), 20)
        await registry.flush()
        with pytest.raises(AgentReplacedError):
            await old.update(current_load=1)
        await asyncio.sleep(3 * QUICK)
        assert not await is_registered(registry)


async def test_leaving_tells_a_session_that_it_was_replaced(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a", name="old"), interval=60) as old:
        await registry.register(AgentInfo("a", name="new"))
    assert old.replaced.is_set()
    assert (await registry.get("a")).name == "new"


async def test_after_data_was_lost_the_later_of_two_starts_stays(registry: AgentRegistry) -> None:
    async with (
        registry.session(AgentInfo("a", name="old"), interval=60) as old,
        registry.session(AgentInfo("a", name="new"), interval=60) as new,
    ):
        await registry.flush()
        await old.update(current_load=1)  # It finds no agent, and registers; so would its heartbeat.
        assert (await registry.get("a")).incarnation == old.incarnation
        await new.update(current_load=2)
        assert (await registry.get("a")).incarnation == new.incarnation
        await registry.flush()
        await new.update(current_load=3)
        with pytest.raises(AgentReplacedError):
            await old.update(current_load=4)
        assert old.replaced.is_set()
        assert (await registry.get("a")).current_load == 3


async def test_a_session_whose_agent_was_deregistered_registers_the_same_start(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a"), interval=QUICK) as session:
        incarnation = session.incarnation
        await registry.deregister("a")
        await wait_until(lambda: is_registered(registry), "it is registered again")
        assert (await registry.get("a")).incarnation == session.incarnation == incarnation
        assert session.healthy


async def test_a_session_that_is_opened_again_is_a_new_start(registry: AgentRegistry) -> None:
    session = registry.session(AgentInfo("a"), interval=QUICK)
    assert session.incarnation == 0
    async with session:
        first = session.incarnation
        await registry.register(AgentInfo("a"))
        await asyncio.wait_for(session.replaced.wait(), 20)
    async with session:
        assert not session.replaced.is_set()
        assert session.incarnation > first
        assert (await registry.get("a")).incarnation == session.incarnation


async def test_a_session_says_that_it_takes_no_work(registry: AgentRegistry) -> None:
    async with registry.session(AgentInfo("a", unready="loading"), interval=QUICK) as session:
        assert not (await registry.get("a")).ready
        assert (await session.ready()).ready
        assert (await session.unready("its disk is full")).unready == "its disk is full"
        await registry.flush()
        await wait_until(lambda: is_registered(registry), "it is registered again")
        assert (await registry.get("a")).unready == "its disk is full"


@pytest.mark.parametrize("store", SHARED_STORES, indirect=True)
async def test_a_session_writes_its_fields_again_when_another_program_has_dropped_them(
    store: StoreUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    async with store.make() as registry:
        async with registry.session(AgentInfo("a", metadata={"k": "v"}, unready="loading"), interval=QUICK) as session:
            await registry.update("a", status=AgentStatus.BUSY, metadata={})  # as the other program may
            await store.rewrite("a")

            async def written_again() -> bool:
                agent = await registry.get("a")
                return (agent.incarnation, agent.unready) == (session.incarnation, "loading")

            await wait_until(written_again, "the session has written its fields")
            found = await registry.get("a")
            assert (found.metadata, found.status) == ({"k": "v"}, AgentStatus.BUSY)
            assert session.healthy
            assert caplog.records == []

            async def told() -> bool:
                if (await registry.get("a")).incarnation:
                    await store.rewrite("a")
                return "another program has rewritten its record" in caplog.text

            await wait_until(told, "it is logged as an error")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("store", SHARED_STORES, indirect=True)
async def test_the_later_of_two_sessions_stays_whatever_other_programs_write(store: StoreUnderTest, seed: int) -> None:
    chance = random.Random(seed)
    async with store.make() as one, store.make() as other:
        disturbances: list[Callable[[], Awaitable[object]]] = [
            lambda: one.deregister("a"),
            lambda: other.heartbeat("a"),
            lambda: one.reap(0),
            one.flush,
        ]
        async with one.session(AgentInfo("a", name="old"), interval=QUICK) as old:
            async with other.session(AgentInfo("a", name="new"), interval=QUICK) as new:
                for _ in range(40):
                    with suppress(AgentNotFoundError):
                        await chance.choice(disturbances)()
                    with suppress(TypeError, AttributeError):  # There is no record to rewrite.
                        await store.rewrite("a")
                    await asyncio.sleep(chance.uniform(0, QUICK))

                async def is_settled() -> bool:
                    with suppress(AgentNotFoundError):
                        agent = await one.get("a")
                        return (agent.incarnation, agent.name) == (new.incarnation, "new") and old.replaced.is_set()
                    return False

                await wait_until(is_settled, "the later session has the agent")
                await asyncio.sleep(3 * QUICK)
                assert await is_settled()
                assert new.healthy
                assert not new.replaced.is_set()


async def test_a_session_knows_that_its_agent_is_drained(registry: AgentRegistry) -> None:
    drain = await registry.drain("a", reason="new disk")
    async with registry.session(AgentInfo("a"), interval=QUICK) as session:
        assert session.draining == drain
        await registry.resume("a")
        await wait_until(lambda: session.draining is None, "the session sees the end")
        drain = await registry.drain("a", reason="again")
        await wait_until(lambda: session.draining == drain, "the session sees the order")
        assert session.healthy
        await registry.deregister("a")
        await wait_until(lambda: is_registered(registry), "it is registered again")
        assert (await registry.get("a")).draining == drain


async def test_a_session_goes_on_after_the_clock_was_set_back_by_years(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with MemoryRegistry(clock=clock) as registry:
        async with registry.session(AgentInfo("a"), interval=QUICK) as session:
            before = session.incarnation
            clock.advance(-3 * 366 * 86_400)
            await wait_until(lambda: session.incarnation < before, "it is a new start by the new clock")
            assert (await registry.get("a")).incarnation == session.incarnation
            assert session.healthy


async def test_an_update_that_makes_the_record_too_long_keeps_what_others_have_written(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry, registry.session(AgentInfo("a"), interval=60) as session:
        key = redis_store.keys.agent("a")
        record: Any = redis_store.client.get(key)
        redis_store.client.set(key, record.replace(b'"name"', b'"z":"%b","name"' % (b"z" * 70_000)))
        with pytest.raises(InvalidAgentError, match="at most"):
            await session.update(name="longer")
        assert b"zzz" in redis_store.client.get(key)  # type: ignore[operator]
        assert session.agent.name == ""


async def test_a_rewritten_record_that_is_too_long_is_replaced(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        async with registry.session(AgentInfo("a", metadata={"k": "v" * 30_000}), interval=QUICK) as session:
            foreign = b'{"id":"a","status":"busy","z":"%b"}' % (b"z" * 50_000)
            redis_store.client.set(redis_store.keys.agent("a"), foreign, keepttl=True)

            async def is_back() -> bool:
                agent = await registry.get("a")
                return agent.incarnation == session.incarnation and bool(agent.metadata)

            await wait_until(is_back, "the session has replaced the record")
            assert session.healthy


async def test_a_replaced_session_sends_nothing_although_its_record_is_rewritten(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry, registry.session(AgentInfo("a", name="old"), interval=0.3) as old:
        await registry.register(AgentInfo("a", name="new"))
        with pytest.raises(AgentReplacedError):
            await old.update(current_load=1)
        await redis_store.rewrite("a")
        await asyncio.sleep(0.5)
        agent = await registry.get("a")
        assert (agent.name, agent.incarnation) == ("new", 0)
        assert not old.healthy

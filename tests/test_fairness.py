"""Grace periods after faults, and the limit on how many agents one sweep may mark."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import pytest

from agentic import (
    AgentInfo,
    AgentRegistry,
    AgentStatus,
    BackendUnavailableError,
    ConfigurationError,
    MemoryRegistry,
    Reaper,
    RedisRegistry,
)
from agentic.abc import Cursor, Step
from agentic.backends.memory import MemoryBackend
from agentic.fairness import GracePeriod, StallDetector, SweepDeadline, valid_guard_deadline
from agentic.testing import FakeClock, StoreUnderTest, wait_until
from agentic.testing.servers import RedisServer, free_port
from tests.support.proxy import Proxy
from tests.support.stores import LONG_AGO, RedisStore

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_a_clock_step_of_any_server_is_a_reason() -> None:
    grace = GracePeriod(ttl=30, interval=10)
    assert grace.reason(0, 0, [NOW, NOW, NOW]) is None
    assert grace.reason(10, 0, [after(10), after(3610), after(10)]) == "the store's clock was stepped by +3600.0 s"
    assert grace.reason(20, 0, [after(20), after(3620), after(20)]) is None
    assert grace.reason(30, 0, [after(30), after(30)]) is None  # another number of servers: nothing to compare


def test_reasons_for_a_grace_period() -> None:
    grace = GracePeriod(ttl=30, interval=10)
    assert grace.reason(0, 0, [NOW]) is None
    assert grace.reason(10, 10, [after(10)]) is None
    assert grace.reason(20, 10.1, [after(20)]) == "the reaper was stalled for 10.1 s"
    assert grace.reason(30, 0, [after(40)]) is None
    assert grace.reason(40, 0, [after(3650)]) == "the store's clock was stepped by +3600.0 s"
    assert grace.reason(50, 0, [after(60)]) == "the store's clock was stepped by -3600.0 s"
    grace.store_failed()
    assert grace.reason(60, 0, [after(70)]) == "the store had failed"
    assert grace.reason(70, 0, [after(80)]) is None


def test_a_store_failure_before_the_first_call_is_a_reason() -> None:
    grace = GracePeriod(ttl=30, interval=10)
    grace.store_failed()
    assert grace.reason(0, 0, [NOW]) == "the store had failed"


@pytest.mark.parametrize("interval", [0.001, 2.5, 60])
def test_the_tolerance_depends_only_on_the_ttl(interval: float) -> None:
    grace = GracePeriod(ttl=3, interval=interval)
    assert grace.reason(0, 0.9, [NOW]) is None
    assert grace.reason(1, 1.1, [after(1.9)]) == "the reaper was stalled for 1.1 s"
    assert grace.reason(2, 0, [after(4)]) == "the store's clock was stepped by +1.1 s"


@pytest.mark.parametrize(("interval", "length"), [(0.1, 10), (10, 10), (60, 60)])
def test_the_length_is_a_third_of_the_ttl_or_the_interval(interval: float, length: float) -> None:
    grace = GracePeriod(ttl=30, interval=interval)
    grace.begin(0)
    assert grace.left(0) == grace.length == length


def test_a_grace_period_ends_by_itself() -> None:
    grace = GracePeriod(ttl=30, interval=10)
    assert grace.left(0) == 0
    grace.begin(0)
    assert grace.left(4) == 6
    grace.begin(4)
    assert grace.left(4) == 10
    assert grace.left(14) == 0


def test_the_deadline_counts_from_the_first_postponement() -> None:
    deadline = SweepDeadline(25, after_outage=10)
    assert deadline.left(100) == 25
    assert deadline.left(110) == 15
    assert deadline.left(130) == 0
    deadline.reset()
    assert deadline.left(200) == 25


def test_the_deadline_excludes_outages_and_leaves_time_after_each() -> None:
    deadline = SweepDeadline(25, after_outage=10)
    deadline.store_failed(0)
    assert deadline.left(100) == 25
    assert deadline.left(110) == 15
    deadline.store_failed(112)
    deadline.store_failed(200)
    assert deadline.left(300) == 13
    deadline.store_failed(310)
    assert deadline.left(400) == 10
    assert deadline.left(409) == 1
    short = SweepDeadline(25, after_outage=60)
    assert short.left(0) == 25
    short.store_failed(20)
    assert short.left(30) == 25


# --- before the registry's ttl ---

REDIS_DEFAULTS = {"ttl": 30, "interval": 10, "expires_after": 300}


def test_default_guard_deadlines() -> None:
    assert valid_guard_deadline(None, **REDIS_DEFAULTS) == pytest.approx(0.9 * (300 - 30 - 11))
    assert valid_guard_deadline(None, ttl=30, interval=10, expires_after=None) == 300
    assert valid_guard_deadline(None, ttl=30, interval=10, expires_after=3600) == 300
    assert valid_guard_deadline(timedelta(minutes=20), ttl=30, interval=10, expires_after=3600) == 1200


@pytest.mark.parametrize(
    ("deadline", "options", "advice"),
    [
        (None, {"ttl": 300}, "choose a shorter ttl or interval, or a longer ttl of the registry"),
        (None, {"ttl": 299}, "choose a shorter ttl or interval"),
        (None, {"interval": 250}, r"interval=250 s \(with jitter 275 s\)"),
        (100, {"interval": 246}, "choose a shorter ttl or interval"),
        (300, {}, r"guard_deadline=300 s .* registry's ttl=300 s: choose a shorter guard_deadline below 259 s"),
        (259, {}, "guard_deadline below 259 s"),
    ],
)
def test_settings_that_let_agents_expire_before_they_are_marked_are_refused(
    deadline: float | None, options: dict[str, float], advice: str
) -> None:
    with pytest.raises(ConfigurationError, match=advice) as caught:
        valid_guard_deadline(deadline, **(REDIS_DEFAULTS | options))
    assert len(str(caught.value)) < 400
    assert valid_guard_deadline(258, **REDIS_DEFAULTS) == 258


async def register_five_agents(registry: AgentRegistry) -> list[str]:
    ids = [f"agent-{number}" for number in range(5)]
    await asyncio.gather(*(registry.register(AgentInfo(agent_id)) for agent_id in ids))
    return ids


@pytest.mark.parametrize("store", ["memory", "redis"], indirect=True)
@pytest.mark.parametrize("restarts", [0, 4])
async def test_a_sweep_that_is_held_back_marks_every_agent_before_it_is_gone(
    store: StoreUnderTest, restarts: int
) -> None:
    reaped: list[str] = []
    held_back: list[tuple[int, int]] = []

    def on_held(stale: int, live: int) -> None:
        held_back.append((stale, live))

    async with store.make(ttl=10, stale_after=1.2) as registry:
        ids = await register_five_agents(registry)
        for number in range(restarts + 1):
            async with Reaper(
                registry,
                interval=0.1,
                on_reaped=reaped.extend,
                max_fraction=0.5,
                guard_deadline=5,
                on_held=on_held,
            ):
                await wait_until(lambda number=number: len(held_back) > number, "the sweep is held back")  # type: ignore[misc]
                if number == restarts:
                    await wait_until(lambda: len(reaped) == 5, "all are marked")
                else:
                    await asyncio.sleep(0.3)
        assert {agent.id for agent in await registry.list()} == set(ids)
    assert [live for _, live in held_back] == [5] * (restarts + 1)
    assert sorted(reaped) == ids


async def test_repeated_grace_periods_end_before_agents_are_gone() -> None:
    reaped: list[str] = []

    async def stall_again_and_again() -> None:
        while True:
            await asyncio.sleep(0.02)
            time.sleep(0.2)  # noqa: ASYNC251  the fault under test

    async with MemoryRegistry(ttl=4, stale_after=0.4) as registry:
        ids = await register_five_agents(registry)
        async with Reaper(registry, interval=0.1, on_reaped=reaped.extend, guard_deadline=2):
            stalling = asyncio.create_task(stall_again_and_again())
            await wait_until(lambda: len(reaped) == 5, "all are marked")
            stalling.cancel()
    assert sorted(reaped) == ids


class Down(MemoryBackend):
    """A store that does not answer the reaper while it is down."""

    down = False

    async def times(self) -> Sequence[datetime]:
        if self.down:
            raise BackendUnavailableError("down")
        return await super().times()


async def test_a_sweep_that_is_held_back_runs_in_the_end_despite_short_outages() -> None:
    reaped: list[str] = []
    store = Down()
    async with AgentRegistry(store) as registry:
        await asyncio.gather(*(registry.register(AgentInfo(f"a{n}", last_heartbeat=LONG_AGO)) for n in range(5)))
        async with Reaper(
            registry, ttl=0.6, interval=0.02, on_reaped=reaped.extend, max_fraction=0.5, guard_deadline=2
        ):

            async def all_marked() -> bool:
                store.down = not store.down
                await asyncio.sleep(0.1 if store.down else 0.5)
                return len(reaped) == 5

            await wait_until(all_marked, "all are marked")


async def test_an_outage_while_a_sweep_is_held_back_marks_no_living_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "agentic")
    reaped: list[str] = []
    held_back: list[int] = []

    def on_held(stale: int, live: int) -> None:
        held_back.append(stale)

    store = Down()
    async with AgentRegistry(store, stale_after=1.2) as registry:
        for agent_id in ("alive", "silent"):
            await registry.register(AgentInfo(agent_id, last_heartbeat=LONG_AGO))
        reaper = Reaper(
            registry, interval=0.05, on_reaped=reaped.extend, max_fraction=0.5, guard_deadline=0.6, on_held=on_held
        )
        async with reaper:
            await wait_until(lambda: bool(held_back), "the sweep is held back")
            store.down = True
            await asyncio.sleep(reaper.guard_deadline)
            store.down = False
            await wait_until(lambda: "for agents to send a heartbeat" in caplog.text, "agents get a grace period")
            await registry.heartbeat("alive")
            await wait_until(lambda: bool(reaped), "the agent that is silent is marked")
    assert reaped == ["silent"]


@pytest.mark.parametrize("iterations", [0, 5])
async def test_a_stall_of_the_event_loop_is_reported_once_and_immediately(iterations: int) -> None:
    stalls = StallDetector(ttl=1.2)
    assert stalls.take_longest() == 0
    with stalls.running():
        await asyncio.sleep(0)
        time.sleep(0.7)  # noqa: ASYNC251  the fault under test
        for _ in range(iterations):
            await asyncio.sleep(0)
        noticed = stalls.take_longest()
        assert noticed > 0.4, "a third of the ttl"
        for _ in range(5):
            await asyncio.sleep(0)
        assert stalls.take_longest() < noticed


async def beat_until_marked(registry: AgentRegistry, reaped: list[str]) -> None:
    """Send the heartbeats of "alive" until a second agent is reported."""

    async def marked() -> bool:
        await registry.heartbeat("alive")
        return len(reaped) > 1

    await wait_until(marked, "the agent that is silent is marked all the same")


async def test_a_stall_of_the_event_loop_marks_no_living_agent() -> None:
    reaped: list[str] = []
    async with MemoryRegistry() as registry, Reaper(registry, ttl=1.2, interval=0.05, on_reaped=reaped.extend):
        await registry.register(AgentInfo("long silent", last_heartbeat=LONG_AGO))
        await wait_until(lambda: bool(reaped), "the reaper runs")
        for agent_id in ("alive", "silent"):
            await registry.register(AgentInfo(agent_id))
        for _ in range(2):
            time.sleep(1.5)  # noqa: ASYNC251  the fault under test
            # As an agent in another process on this host, which was stalled as long and runs later than the reaper.
            await asyncio.sleep(0.15)
            await registry.heartbeat("alive")
        await beat_until_marked(registry, reaped)
    assert reaped == ["long silent", "silent"]


class StallsDuringScan(MemoryBackend):
    """A store that can block the event loop once during a scan, as any other task might."""

    stall = 0.0

    async def scan(self, cursor: Cursor) -> Step[Sequence[AgentInfo]]:
        page = await super().scan(cursor)
        seconds, self.stall = self.stall, 0.0
        time.sleep(seconds)  # noqa: ASYNC251  the fault under test
        return page


async def test_a_stall_while_the_fleet_is_counted_marks_no_living_agent() -> None:
    reaped: list[str] = []
    store = StallsDuringScan()
    async with AgentRegistry(store) as registry, AsyncExitStack() as stack:
        for number in range(5):
            await stack.enter_async_context(registry.session(AgentInfo(f"alive-{number}"), interval=0.2))
        await registry.register(AgentInfo("silent"))
        store.stall = 2
        async with Reaper(registry, ttl=1.5, interval=0.1, on_reaped=reaped.extend, max_fraction=0.5):
            await wait_until(lambda: bool(reaped), "the agent that is silent is marked all the same")
    assert reaped == ["silent"]


async def test_a_late_answer_of_the_store_marks_no_living_agent(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    reaped: list[str] = []
    async with RedisRegistry(own_redis_server.url, timeout=20) as registry:
        for agent_id in ("alive", "silent"):
            await registry.register(AgentInfo(agent_id))
        await registry.register(AgentInfo("long silent", last_heartbeat=LONG_AGO))
        async with Reaper(registry, ttl=1.2, interval=0.5, on_reaped=reaped.extend):
            await wait_until(lambda: bool(reaped), "the reaper has swept, and asks for nothing for a while")
            own_redis_server.pause()
            await asyncio.sleep(2)
            own_redis_server.resume()
            await wait_until(lambda: "the reaper was stalled" in caplog.text, "the late answer is noticed")
            await beat_until_marked(registry, reaped)
    assert reaped == ["long silent", "silent"]


class Line(Proxy):
    """A connection to the store that can be cut: nothing that is sent meanwhile ever arrives."""

    def cut(self) -> None:
        self._up, self.target = self.target, free_port()
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self.target = self._up


@pytest.mark.parametrize("started", ["before", "meanwhile"])
async def test_an_outage_marks_no_living_agent(
    redis_store: RedisStore, redis_server: RedisServer, started: str, caplog: pytest.LogCaptureFixture
) -> None:
    ttl, reaped = 2.4, list[str]()
    async with Line(redis_server.port) as line, redis_store.make() as direct, AsyncExitStack() as stack:
        registry = RedisRegistry(line.url, prefix=redis_store.prefix)
        await stack.enter_async_context(registry)
        # Sessions that try again later than the reaper does: it is the first to see the store again.
        alive = [registry.session(AgentInfo(f"alive-{number}"), interval=0.4) for number in range(5)]
        for session in alive:
            await stack.enter_async_context(session)
        await registry.register(AgentInfo("silent"))
        reaper = Reaper(registry, ttl=ttl, interval=0.02, on_reaped=reaped.extend)
        if started == "before":
            await stack.enter_async_context(reaper)
        line.cut()
        if started == "meanwhile":
            await stack.enter_async_context(reaper)
        await wait_until(lambda: "the reaper: the store failed" in caplog.text, "the reaper sees the outage")

        async def all_look_silent() -> bool:
            stale = await direct.store_time() - timedelta(seconds=ttl)
            return all(agent.last_heartbeat < stale for agent in await direct.list())  # type: ignore[operator]

        await wait_until(all_look_silent, "the outage lasts for longer than the ttl")
        assert reaped == []
        line.mend()
        await wait_until(lambda: bool(reaped), "the agent that is silent is marked all the same")
        assert reaped == ["silent"]
        await wait_until(lambda: all(session.healthy for session in alive), "the sessions see the store again")


async def test_a_step_forward_of_the_stores_clock_marks_no_living_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    reaped: list[str] = []
    async with (
        MemoryRegistry(clock=clock) as registry,
        registry.session(AgentInfo("alive"), interval=0.4) as session,
        Reaper(registry, ttl=2.4, interval=0.02, on_reaped=reaped.extend),
    ):
        await registry.register(AgentInfo("silent"))
        registered_at = session.last_beat_at
        await wait_until(lambda: session.last_beat_at != registered_at, "the next beat is a while off")
        clock.advance(3600)
        await wait_until(lambda: bool(reaped), "the agent that is silent is marked")
        assert reaped == ["silent"]
        assert "the store's clock was stepped by +3600.0 s" in caplog.text
        assert (await registry.get("alive")).status is AgentStatus.AVAILABLE


async def test_a_step_back_of_the_stores_clock_is_logged_and_silent_agents_are_still_marked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    reaped: list[str] = []
    async with (
        MemoryRegistry(clock=clock) as registry,
        registry.session(AgentInfo("alive"), interval=0.2),
        Reaper(registry, ttl=1.5, interval=0.02, on_reaped=reaped.extend),
    ):
        await registry.register(AgentInfo("long silent", last_heartbeat=LONG_AGO))
        await wait_until(lambda: bool(reaped), "the reaper knows the time before the step")
        clock.advance(-3600)
        await wait_until(lambda: "the store's clock was stepped by -3600.0 s" in caplog.text, "the step is logged")
        await registry.register(AgentInfo("silent"))
        await wait_until(lambda: len(reaped) > 1, "an agent that falls silent by the new time is marked")
        assert reaped == ["long silent", "silent"]
        assert (await registry.get("alive")).status is AgentStatus.AVAILABLE


async def test_a_mass_expiry_is_held_back_and_reported_until_the_deadline(caplog: pytest.LogCaptureFixture) -> None:
    held_back: list[tuple[int, int]] = []
    reaped: list[str] = []
    async with MemoryRegistry() as registry:
        for number in range(10):
            await registry.register(AgentInfo(f"agent-{number}", last_heartbeat=LONG_AGO if number < 6 else None))
        reaper = Reaper(
            registry,
            ttl=60,
            interval=0.02,
            on_reaped=reaped.extend,
            max_fraction=0.5,
            guard_deadline=0.5,
            on_held=lambda stale, live: held_back.append((stale, live)),
        )
        async with reaper:
            await wait_until(lambda: bool(held_back), "the sweep is held back")
            assert reaped == []
            await wait_until(lambda: bool(reaped), "it goes ahead after the deadline")
    assert held_back == [(6, 10)]
    assert sorted(reaped) == [f"agent-{number}" for number in range(6)]
    assert caplog.text.count("sweeps are held back: 6 of 10 live agents are stale") == 1


async def test_a_small_expiry_is_not_held_back() -> None:
    reaped: list[str] = []
    async with MemoryRegistry() as registry:
        for number in range(10):
            await registry.register(AgentInfo(f"agent-{number}", last_heartbeat=LONG_AGO if number < 5 else None))
        async with Reaper(registry, ttl=60, interval=0.02, on_reaped=reaped.extend, max_fraction=0.5):
            await wait_until(lambda: len(reaped) == 5, "half of the fleet is marked at once")


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, float("nan"), True, "half"])
def test_a_wrong_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="^max_fraction: "):
        Reaper(MemoryRegistry(), max_fraction=fraction)

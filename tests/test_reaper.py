"""The reaper: marking, callbacks, failures and options."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import anyio
import pytest

from agentic import (
    AgentInfo,
    AgentRegistry,
    AgentStatus,
    BackendError,
    ConfigurationError,
    MemoryRegistry,
    Reaper,
    RedisRegistry,
    RegistryClosedError,
)
from agentic.abc import Cursor, Step
from agentic.backends.memory import MemoryBackend
from agentic.logs import FieldLogger
from agentic.reaper_callbacks import MAX_WAITING, Callbacks
from agentic.testing import RedisServer, wait_until
from tests.support.stores import LONG_AGO, RedisStore

SILENT = AgentInfo("silent", last_heartbeat=LONG_AGO)


async def test_silent_agents_are_marked_and_reported_once(registry: AgentRegistry) -> None:
    reported: list[list[str]] = []
    await registry.register(AgentInfo("alive"))
    await registry.register(SILENT)
    async with Reaper(registry, ttl=60, interval=0.01, on_reaped=reported.append):
        await wait_until(lambda: bool(reported), "the silent agent is reported")
        await registry.heartbeat("silent")
        await registry.register(SILENT)
        await wait_until(lambda: len(reported) > 1, "the agent that fell silent again is reported again")
    assert reported == [["silent"], ["silent"]]
    assert (await registry.get("silent")).status is AgentStatus.OFFLINE
    assert (await registry.get("alive")).status is AgentStatus.AVAILABLE


async def test_run_sweeps_in_the_callers_task_group() -> None:
    reported = asyncio.Event()

    async def on_reaped(ids: list[str]) -> None:
        await asyncio.sleep(0)
        assert ids == ["silent"]
        reported.set()

    async with MemoryRegistry() as registry:
        await registry.register(SILENT)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Reaper(registry, 60, 0.01, on_reaped).run)
            await reported.wait()
            tasks.cancel_scope.cancel()


async def test_many_reapers_report_each_agent_once(redis_store: RedisStore) -> None:
    reported: list[str] = []
    async with AsyncExitStack() as stack:
        registries = [await stack.enter_async_context(redis_store.make()) for _ in range(4)]
        for registry in registries:
            await stack.enter_async_context(Reaper(registry, ttl=60, interval=0.001, on_reaped=reported.extend))
        for round_ in range(5):
            ids = [f"agent-{round_}-{n}" for n in range(400)]
            await asyncio.gather(*(registries[0].register(AgentInfo(i, last_heartbeat=LONG_AGO)) for i in ids))
            await wait_until(lambda count=400 * (round_ + 1): len(reported) >= count, "all are reported")  # type: ignore[misc]
    assert len(reported) == len(set(reported)) == 2000


# --- callbacks ---


async def cancelled_elsewhere() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "fail",
    [
        pytest.param(raising(ZeroDivisionError()), id="Exception"),
        pytest.param(cancelled_elsewhere, id="a task that other code cancels"),
        pytest.param(raising(asyncio.CancelledError()), id="CancelledError"),
        pytest.param(raising(BaseExceptionGroup("g", [asyncio.CancelledError(), KeyError()])), id="BaseExceptionGroup"),
        pytest.param(raising(GeneratorExit()), id="GeneratorExit"),
    ],
)
async def test_an_error_of_a_callback_is_logged_with_its_ids_and_the_reaper_continues(
    fail: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[list[str]] = []

    async def on_reaped(ids: list[str]) -> None:
        reported.append(ids)
        if len(reported) == 1:
            await fail()

    async with MemoryRegistry() as registry:
        await registry.register(SILENT)
        async with Reaper(registry, interval=0.01, on_reaped=on_reaped):
            await wait_until(lambda: len(reported) == 1, "the first is reported")
            await registry.register(AgentInfo("next", last_heartbeat=LONG_AGO))
            await wait_until(lambda: len(reported) == 2, "the next is reported")
    assert reported == [["silent"], ["next"]]
    assert caplog.text.count("on_reaped failed; its agents, now offline: silent\n") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_ends_the_program(error: type[BaseException]) -> None:
    def on_reaped(_: list[str]) -> None:
        raise error

    async def main() -> None:
        async with MemoryRegistry() as registry:
            await registry.register(SILENT)
            async with Reaper(registry, interval=0.01, on_reaped=on_reaped):
                await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(main())


async def test_a_callback_that_does_not_return_does_not_stop_the_sweeps(
    registry: AgentRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[list[str]] = []
    resume = asyncio.Event()

    async def on_reaped(ids: list[str]) -> None:
        calls.append(ids)
        await resume.wait()

    async with Reaper(registry, interval=0.02, on_reaped=on_reaped):
        for number in range(4):
            await registry.register(AgentInfo(f"agent-{number}", last_heartbeat=LONG_AGO))

            async def marked(agent_id: str = f"agent-{number}") -> bool:
                return (await registry.get(agent_id)).status is AgentStatus.OFFLINE

            await wait_until(marked, "it is marked")
        await wait_until(lambda: "on_reaped has been running for 0.02 s" in caplog.text, "it is logged")
        assert calls == [["agent-0"]]
        resume.set()
        await wait_until(lambda: len(calls) > 1, "the others are reported")
    assert calls == [["agent-0"], ["agent-1", "agent-2", "agent-3"]]
    assert caplog.text.count("on_reaped has been running") == 1


async def test_callbacks_get_the_timeout_when_the_reaper_ends_and_undelivered_ids_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[list[str]] = []
    cancelled: list[bool] = []

    async def on_reaped(ids: list[str]) -> None:
        calls.append(ids)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)

    async with MemoryRegistry(timeout=0.1) as registry:
        async with Reaper(registry, interval=0.01, on_reaped=on_reaped):
            await registry.register(SILENT)
            await wait_until(lambda: bool(calls), "the callback runs")
            await registry.register(AgentInfo("late\n", last_heartbeat=LONG_AGO))
            await wait_until(lambda: is_offline(registry, "late\n"), "the next is marked")
    await wait_until(lambda: bool(cancelled), "the callback is cancelled")
    assert calls == [["silent"]]
    assert "on_reaped was cancelled because it had not returned when the reaper ended; " in caplog.text
    assert "now offline: silent\n" in caplog.text
    assert "on_reaped was not called; its agents, now offline: late\\n" in caplog.text


async def is_offline(registry: AgentRegistry, agent_id: str) -> bool:
    return (await registry.get(agent_id)).status is AgentStatus.OFFLINE


async def test_waiting_callbacks_are_called_when_the_reaper_ends() -> None:
    calls: list[list[str]] = []
    resume = asyncio.Event()

    async def on_reaped(ids: list[str]) -> None:
        calls.append(ids)
        await resume.wait()

    async with MemoryRegistry() as registry:
        reaper = Reaper(registry, interval=0.01, on_reaped=on_reaped)
        await reaper.open()
        for agent_id in ("first", "second"):
            await registry.register(AgentInfo(agent_id, last_heartbeat=LONG_AGO))
            await wait_until(lambda agent_id=agent_id: is_offline(registry, agent_id), "marked")  # type: ignore[misc]
        closing = asyncio.create_task(reaper.aclose())
        await asyncio.sleep(0.01)
        resume.set()
        await closing
    assert calls == [["first"], ["second"]]


async def test_the_number_of_waiting_ids_is_limited_and_dropped_ids_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[object] = []
    resume = asyncio.Event()

    async def on_reaped(ids: list[str]) -> None:
        calls.append(ids)
        await resume.wait()

    def on_held(stale: int, live: int) -> None:
        calls.append((stale, live))

    callbacks = Callbacks(FieldLogger(logging.getLogger("agentic.reaper")), on_reaped, on_held, slow_after=60)
    callbacks.reaped(["first"])
    callbacks.held(1, 2)
    callbacks.reaped([f"agent-{number}" for number in range(MAX_WAITING)])
    callbacks.held(3, 4)
    assert not caplog.records
    callbacks.reaped(["one too many"])
    callbacks.reaped(["last"])
    resume.set()
    await callbacks.aclose(20)
    callbacks.reaped(["too late"])
    lines = [record.getMessage() for record in caplog.records]
    assert {line.partition(": ")[0] for line in lines} == {"on_reaped was not called; its agents, now offline"}
    missed = [agent_id for line in lines for agent_id in line.partition(": ")[2].split(", ")]
    assert missed == [*(f"agent-{number}" for number in range(MAX_WAITING)), "one too many", "too late"]
    assert calls == [["first"], (3, 4), ["last"]]


# --- failure ---


class Failing(MemoryBackend):
    """A store whose sweeps can be made to fail after the first page, or to wait."""

    error: Exception | None = None
    gate: asyncio.Event | None = None

    async def sweep(self, ttl: timedelta, cursor: Cursor) -> Step[Sequence[str]]:
        if cursor == "failing" and self.error:
            raise self.error
        marked, _ = await super().sweep(ttl, None)
        if self.gate:
            await self.gate.wait()
        return marked, "failing" if self.error else None


async def test_agents_marked_before_a_sweep_failed_are_reported() -> None:
    reported: list[str] = []
    store = Failing()
    async with AgentRegistry(store) as registry:
        await registry.register(SILENT)
        store.error = BackendError("down")
        with pytest.raises(BackendError) as caught:
            await registry.reap(60)
        assert caught.value.reaped == ("silent",)
        await registry.register(SILENT)
        async with Reaper(registry, ttl=60, interval=0.01, on_reaped=reported.extend):
            await wait_until(lambda: bool(reported), "it is reported")
    assert reported == ["silent"]


async def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(
    own_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "agentic")
    reported: list[str] = []
    async with RedisRegistry(own_redis_server.url, timeout=0.5) as registry:
        async with Reaper(registry, ttl=1, interval=0.01, on_reaped=reported.extend):
            own_redis_server.stop()
            await wait_until(lambda: "retrying" in caplog.text, "the outage is logged")
            own_redis_server.start()
            await wait_until(lambda: "is back" in caplog.text, "its end is logged")
            await registry.register(SILENT)
            await wait_until(lambda: bool(reported), "the reaper works again")
    outages = [record.message for record in caplog.records if record.message.startswith("the reaper: ")]
    assert [("retrying" in text, "is back" in text) for text in outages] == [(True, False), (False, True)]


async def test_a_bug_is_logged_and_raised_by_run_and_by_the_block(caplog: pytest.LogCaptureFixture) -> None:
    store = Failing()
    async with AgentRegistry(store) as registry:
        store.error = ZeroDivisionError()
        await registry.register(SILENT)
        with pytest.raises(ZeroDivisionError):
            await Reaper(registry, ttl=60).run()
        with pytest.raises(ZeroDivisionError) as caught:
            async with Reaper(registry, ttl=60):
                await asyncio.Event().wait()
        assert caught.value is store.error
    assert caplog.text.count("the reaper has failed") == 2


async def test_a_registry_that_is_not_open_is_an_error() -> None:
    with pytest.raises(RegistryClosedError):
        await Reaper(MemoryRegistry(), ttl=60).run()


async def test_the_current_page_is_finished_and_reported_when_the_reaper_is_cancelled() -> None:
    reported: list[str] = []
    store = Failing()
    async with AgentRegistry(store) as registry:
        store.gate = asyncio.Event()
        await registry.register(SILENT)
        task = asyncio.create_task(Reaper(registry, ttl=60, on_reaped=reported.extend).run())

        async def is_marked() -> bool:
            (agent,) = await store.fetch(["silent"])
            return agent is not None and agent.status is AgentStatus.OFFLINE

        await wait_until(is_marked, "the agent is marked")
        task.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert reported == ["silent"]


# --- options ---


def test_the_default_ttl_is_stale_after_and_the_default_interval_a_third_of_it() -> None:
    reaper = Reaper(MemoryRegistry())
    assert (reaper.ttl, reaper.interval) == (30, 10)
    reaper = Reaper(MemoryRegistry(stale_after=60))
    assert (reaper.ttl, reaper.interval) == (60, 20)
    reaper = Reaper(MemoryRegistry(), timedelta(minutes=1), timedelta(seconds=5))
    assert (reaper.ttl, reaper.interval) == (60, 5)


@pytest.mark.parametrize(("ttl", "warned"), [(None, 0), (45, 0), (60, 1)])
async def test_a_ttl_that_differs_from_stale_after_logs_one_warning(
    ttl: float | None, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[str] = []
    async with MemoryRegistry(stale_after=45) as registry:
        await registry.register(SILENT)
        async with Reaper(registry, ttl, interval=0.01, on_reaped=reported.extend):
            await wait_until(lambda: bool(reported), "it sweeps")
    assert caplog.text.count("the reaper's ttl=60 s differs from the registry's stale_after=45 s") == warned
    assert len(caplog.records) == warned


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), True, "1"])
def test_invalid_durations_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="^ttl must"):
        Reaper(MemoryRegistry(), ttl=wrong)
    with pytest.raises(ConfigurationError, match="^interval must"):
        Reaper(MemoryRegistry(), interval=wrong)


@pytest.mark.parametrize("ttl", [60, 61])
def test_a_reaper_slower_than_the_registrys_ttl_is_refused(ttl: float) -> None:
    with pytest.raises(ConfigurationError, match="together must be shorter than the registry's ttl=60 s"):
        Reaper(MemoryRegistry(ttl=60), ttl=ttl)
    Reaper(MemoryRegistry(ttl=60), ttl=40)

"""Sessions whose heartbeats are sent from a thread: a blocked event loop, leaving, and the end of the thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import redis.asyncio as aioredis
from msgspec.structs import replace

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentReplacedError,
    AgentStatus,
    BackendError,
    BackendUnavailableError,
    Beat,
    ConfigurationError,
    MemoryRegistry,
    RedisRegistry,
    RegistryClosedError,
    SQLiteRegistry,
)
from agentic.beat_thread import BeatThread
from agentic.deregistration_budget import DeregistrationBudget
from agentic.logs import FieldLogger
from agentic.presence import Presence
from agentic.session import AgentSession
from agentic.testing import RedisServer, StoreUnderTest, wait_until
from agentic.validation import MAX_RECORD_BYTES
from tests.support.stores import SHARED_STORES, RedisStore
from tests.support.waiting import is_registered

QUICK = 0.02
THREAD = "agentic heartbeats"

on_shared_stores = pytest.mark.parametrize("store", SHARED_STORES, indirect=True)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    end = time.monotonic() + 20
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert threads() == 0


def threads() -> int:
    return sum(thread.name == THREAD for thread in threading.enumerate())


def largest_agent() -> AgentInfo:
    """Return an agent whose record is almost as large as one may be."""
    agent = AgentInfo("a", metadata={"k": "v"})
    room = MAX_RECORD_BYTES - len(msgspec.json.encode(agent)) - 20
    return replace(agent, metadata={"k": "v" * room})


# --- a blocked event loop ---


class Sample(NamedTuple):
    at: float
    agent: AgentInfo
    reaped: list[str]


class Observer:
    """Reaps and reads one agent again and again, in another thread."""

    def __init__(self, registry: AgentRegistry) -> None:
        self._registry = registry
        self._stop = threading.Event()
        self.samples: list[Sample] = []

    async def _observe(self) -> None:
        async with self._registry:
            while not self._stop.is_set():
                reaped = await self._registry.reap()
                self.samples.append(Sample(time.monotonic(), await self._registry.get("a"), reaped))
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        thread = threading.Thread(target=lambda: asyncio.run(self._observe()))
        thread.start()
        try:
            await wait_until(lambda: bool(self.samples), "the observer has read the agent")
            yield
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join)


@on_shared_stores
async def test_the_agent_of_a_blocked_event_loop_is_alive_and_unready(
    store: StoreUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    interval = 0.6
    observer = Observer(store.make(stale_after=3 * interval))
    async with (
        store.make(stale_after=3 * interval) as registry,
        registry.session(AgentInfo("a"), interval=interval, thread=True) as session,
        observer.running(),
    ):
        blocked_at = time.monotonic()
        time.sleep(5 * interval)  # noqa: ASYNC251  blocks the loop on purpose
        runs_again_at = time.monotonic()

        def is_ready_again() -> bool:
            return observer.samples[-1].at > runs_again_at and observer.samples[-1].agent.ready

        await wait_until(is_ready_again, "the agent is ready again")
        assert session.agent.ready
    assert all(sample.agent.status is AgentStatus.AVAILABLE for sample in observer.samples)
    assert not any(sample.reaped for sample in observer.samples)
    unready = [sample for sample in observer.samples if not sample.agent.ready]
    assert blocked_at + interval < unready[0].at < blocked_at + 2 * interval
    assert observer.samples[-1].at < runs_again_at + 2 * interval
    assert unready[0].agent.unready.startswith("event loop blocked for 0.")
    assert unready[-1].agent.unready.startswith("event loop blocked for 2.")
    await wait_until(lambda: "its event loop runs again" in caplog.text, "it is logged")
    assert caplog.text.count("agent 'a' is shown as unready: event loop blocked for 0.") == 1
    assert caplog.text.count("agent 'a': its event loop runs again") == 1


@on_shared_stores
async def test_the_agents_own_reason_stays_while_its_event_loop_is_blocked(store: StoreUnderTest) -> None:
    observer = Observer(store.make())
    async with (
        store.make() as registry,
        registry.session(AgentInfo("a", unready="loading"), interval=0.1, thread=True) as session,
        observer.running(),
    ):
        time.sleep(0.5)  # noqa: ASYNC251
        seen = len(observer.samples)
        await session.ready()
        assert (await registry.get("a")).ready
    assert {sample.agent.unready for sample in observer.samples[:seen]} == {"loading"}


@pytest.mark.parametrize("has_room", [True, False])
@on_shared_stores
async def test_an_agent_registered_again_while_its_event_loop_is_blocked_is_unready(
    store: StoreUnderTest, has_room: bool
) -> None:
    async def forget() -> None:
        async with other:
            await other.deregister("a")
            await wait_until(lambda: is_registered(other), "it is registered again")
            found.append(await other.get("a"))

    other, found = store.make(), list[AgentInfo]()
    agent = AgentInfo("a") if has_room else largest_agent()
    async with store.make() as registry, registry.session(agent, interval=0.2, thread=True):
        blocked_until = time.monotonic() + 0.5
        time.sleep(0.5)  # noqa: ASYNC251
        thread = threading.Thread(target=lambda: asyncio.run(forget()))
        thread.start()
        while thread.is_alive():
            time.sleep(0.01)  # noqa: ASYNC251
        assert found[0].unready.startswith("event loop blocked for" if has_room else "")
        assert bool(found[0].unready) == has_room
        assert time.monotonic() > blocked_until


def has_just_beaten(agent: AgentInfo) -> bool:
    assert agent.last_heartbeat is not None
    return datetime.now(UTC) - agent.last_heartbeat < timedelta(seconds=1)


@on_shared_stores
async def test_heartbeats_continue_while_the_event_loop_waits_for_a_logging_handler(store: StoreUnderTest) -> None:
    handler = logging.StreamHandler()
    logging.getLogger("agentic").addHandler(handler)
    try:
        async with store.make() as registry, registry.session(AgentInfo("a"), interval=0.1, thread=True):
            with handler.lock:  # type: ignore[union-attr]  # As while a handler writes to a pipe that is full.
                time.sleep(2)  # noqa: ASYNC251
            assert has_just_beaten(await registry.get("a"))
    finally:
        logging.getLogger("agentic").removeHandler(handler)


@on_shared_stores
async def test_heartbeats_begin_although_the_event_loop_is_blocked_while_a_session_opens(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = BeatThread.start

    def start_and_block(thread: BeatThread, call: Any) -> Any:
        started = start(thread, call)
        time.sleep(2)
        return started

    async with store.make() as registry:
        with monkeypatch.context() as patched:
            patched.setattr(BeatThread, "start", start_and_block)
            opening = asyncio.create_task(registry.session(AgentInfo("a"), interval=0.1, thread=True).open())
            await wait_until(lambda: is_registered(registry), "the session has registered, and the loop was blocked")
        assert has_just_beaten(await registry.get("a"))
        await opening


@on_shared_stores
async def test_heartbeats_continue_although_a_registration_is_logged_by_a_handler_that_blocks(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, start = logging.StreamHandler(), BeatThread.start

    def start_and_block(thread: BeatThread, call: Any) -> Any:
        with handler.lock:  # type: ignore[union-attr]
            started = start(thread, call)
            time.sleep(2)
        return started

    logging.getLogger("agentic").addHandler(handler)
    try:
        async with store.make() as registry, registry.session(AgentInfo("a"), interval=0.1, thread=True):
            async with store.make() as other:
                await other.register(AgentInfo("b"))  # Replaced by the session, which is logged.
            with monkeypatch.context() as patched:
                patched.setattr(BeatThread, "start", start_and_block)
                opening = asyncio.create_task(registry.session(AgentInfo("b"), thread=True).open())
                await asyncio.sleep(0.1)
            assert has_just_beaten(await registry.get("a"))
            await opening
    finally:
        logging.getLogger("agentic").removeHandler(handler)


@on_shared_stores
async def test_an_agent_whose_record_has_no_room_for_the_text_stays_alive(store: StoreUnderTest) -> None:
    async with store.make() as registry, registry.session(largest_agent(), interval=0.1, thread=True) as session:
        time.sleep(0.5)  # noqa: ASYNC251
        first = session.last_beat_at
        await wait_until(lambda: session.last_beat_at != first, "it goes on")
        assert (await registry.get("a")).unready == ""


@on_shared_stores
async def test_a_session_with_a_short_interval_joins_one_with_a_long_interval(store: StoreUnderTest) -> None:
    observer = Observer(store.make())
    async with (
        store.make() as registry,
        registry.session(AgentInfo("b"), interval=200, thread=True),
        registry.session(AgentInfo("a"), interval=0.3, thread=True),
        observer.running(),
    ):
        time.sleep(2)  # noqa: ASYNC251
        assert observer.samples[-1].agent.unready.startswith("event loop blocked for 1.")


async def test_a_thread_opens_the_file_of_its_registry_although_the_working_directory_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with SQLiteRegistry("registry.db") as registry:
        session = registry.session(AgentInfo("a"), thread=True)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        async with session:
            assert await is_registered(registry)


AGENT = """
import asyncio, sys, time
from agentic import AgentInfo, open_registry
async def main():
    async with open_registry(sys.argv[1]) as registry:
        async with registry.session(AgentInfo("a"), interval=0.5, thread=True):
            while True:
                time.sleep(0.2)  # So that the process is suspended while a check is unanswered.
                await asyncio.sleep(0.001)
asyncio.run(main())
"""


async def test_a_process_that_was_suspended_is_not_taken_for_a_blocked_event_loop(redis_store: RedisStore) -> None:
    async with redis_store.make() as registry:
        with subprocess.Popen([sys.executable, "-c", AGENT, registry.store]) as process:
            try:
                await wait_until(lambda: is_registered(registry), "the agent is registered")
                before = (await registry.get("a")).last_heartbeat
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(1.5)  # As long as the process is suspended.
                process.send_signal(signal.SIGCONT)
                for _ in range(3):
                    before = (await registry.get("a")).last_heartbeat

                    async def has_beaten(before: Any = before) -> bool:
                        found = await registry.get("a")
                        assert found.unready == ""
                        return bool(found.last_heartbeat != before)

                    await wait_until(has_beaten, "it sends a heartbeat")
            finally:
                process.kill()


# --- the same promises as without a thread ---


@on_shared_stores
async def test_a_session_in_a_thread_registers_beats_updates_and_deregisters(store: StoreUnderTest) -> None:
    async with store.make() as registry:
        async with registry.session(AgentInfo("a", name="n"), interval=QUICK, thread=True) as session:
            assert session.healthy
            assert session.incarnation == (await registry.get("a")).incarnation
            first = session.last_beat_at
            await wait_until(lambda: session.last_beat_at != first, "a heartbeat was sent")
            updated = await session.update(status=AgentStatus.BUSY, current_load=3)
            assert (updated.name, updated.current_load, session.agent.current_load) == ("n", 3, 3)
            await registry.flush()
            await wait_until(lambda: is_registered(registry), "it was registered again")
            found = await registry.get("a")
            assert (found.current_load, found.incarnation) == (3, session.incarnation)
            order = await registry.drain("a", reason="maintenance")
            await wait_until(lambda: session.draining == order, "the session knows that it is drained")
        assert not await is_registered(registry)
        assert not session.healthy
        with pytest.raises(RegistryClosedError, match="the session of agent 'a' is not open"):
            await session.update(current_load=1)


@on_shared_stores
async def test_an_update_after_a_block_shows_that_the_event_loop_runs(store: StoreUnderTest) -> None:
    async with store.make() as registry, registry.session(AgentInfo("a"), interval=0.1, thread=True) as session:
        time.sleep(0.5)  # noqa: ASYNC251
        assert (await session.update(current_load=1)).unready == ""


@pytest.mark.parametrize("moment", range(4))
async def test_cancelling_every_task_while_a_session_opens_leaves_nothing_open(
    redis_store: RedisStore, moment: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with redis_store.make() as registry:
            opening = asyncio.create_task(registry.session(AgentInfo("a"), thread=True).open())
            for _ in range(4**moment):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                if task is not outer:
                    task.cancel()
            await asyncio.wait([opening])

    before = redis_store.connections()
    outer = asyncio.current_task()
    await asyncio.create_task(run())
    await wait_until(lambda: threads() == 0, "the thread has ended")
    await wait_until(lambda: redis_store.connections() == before, "every connection is closed")
    assert "has failed" not in caplog.text
    assert "never retrieved" not in caplog.text


@on_shared_stores
async def test_a_later_start_replaces_a_session_in_a_thread(store: StoreUnderTest) -> None:
    async with (
        store.make() as registry,
        registry.session(AgentInfo("a", name="old"), interval=QUICK, thread=True) as old,
        registry.session(AgentInfo("a", name="new"), interval=QUICK, thread=True) as new,
    ):
        await asyncio.wait_for(old.replaced.wait(), 20)
        assert not old.healthy
        with pytest.raises(AgentReplacedError):
            await old.update(current_load=1)
        await old.aclose()
        assert ((await registry.get("a")).name, new.healthy) == ("new", True)


@on_shared_stores
async def test_leaving_tells_a_session_in_a_thread_that_it_was_replaced(store: StoreUnderTest) -> None:
    async with store.make() as registry, registry.session(AgentInfo("a"), interval=60, thread=True) as old:
        async with registry.session(AgentInfo("a"), interval=60):
            await old.aclose()
            assert old.replaced.is_set()
            assert await is_registered(registry)


@pytest.mark.parametrize("iterations", range(6))
@on_shared_stores
async def test_a_session_in_a_thread_cancelled_on_entry_leaves_no_agent(store: StoreUnderTest, iterations: int) -> None:
    async with store.make() as registry:
        session = registry.session(AgentInfo("a"), thread=True)
        opening = asyncio.create_task(session.open())
        for _ in range(4**iterations):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        await session.aclose()
        await wait_until(lambda: threads() == 0, "the thread has ended")
        assert not await is_registered(registry)
        async with session:
            assert await is_registered(registry)


async def test_an_outage_does_not_end_a_session_in_a_thread(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=0.5) as registry:
        async with registry.session(AgentInfo("a", name="n"), interval=QUICK, thread=True) as session:
            own_redis_server.stop()
            await wait_until(lambda: not session.healthy, "the session sees the outage")
            with pytest.raises(BackendError):
                await session.update(name="lost")
            own_redis_server.start()
            await wait_until(lambda: session.healthy, "the session sees the store again")
            assert (await registry.get("a")).name == "n"


async def test_a_store_failure_on_entry_leaves_no_thread_and_may_be_tried_again(own_redis_server: RedisServer) -> None:
    async with RedisRegistry(own_redis_server.url, timeout=0.5, wait=60) as registry:
        session = registry.session(AgentInfo("a"), thread=True)
        own_redis_server.stop()
        with pytest.raises(BackendUnavailableError):
            await session.open()
        await wait_until(lambda: threads() == 0, "the thread has ended")
        own_redis_server.start()
        async with session:
            assert session.healthy


async def test_a_process_without_threads_to_spare_is_told(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with redis_store.make() as registry:
        session = registry.session(AgentInfo("a"), thread=True)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await session.open()
        async with session:
            assert session.healthy


# --- leaving ---


class Absent:
    """The calls of a registry whose agent is gone, and whose heartbeats are answered late."""

    timeout = 5.0

    def __init__(self) -> None:
        self.deregistration_budget = DeregistrationBudget(5)
        self.direct_starts: dict[str, int] = {}
        self.registered = 0
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def register(self, agent: AgentInfo, *, incarnation: int) -> AgentInfo:
        self.registered += 1
        return agent

    async def heartbeat(self, agent_id: str, *, incarnation: int) -> Beat:
        self.asked.set()
        await self.answer.wait()
        raise AgentNotFoundError(agent_id)

    async def update(self, agent_id: str, *, incarnation: int, **changes: Any) -> AgentInfo:
        raise AgentNotFoundError(agent_id)

    async def deregister(self, agent_id: str, *, incarnation: int) -> None:
        raise AgentNotFoundError(agent_id)


async def test_an_absence_that_is_found_after_the_agent_has_left_registers_nothing() -> None:
    calls = Absent()
    log = FieldLogger(logging.getLogger("test"), store="s")
    presence = Presence(calls, AgentInfo("a"), log, interval=QUICK, on_replaced=lambda _: None)
    await presence.register()
    keeping = asyncio.create_task(presence.keep("the session"))
    await calls.asked.wait()
    await presence.leave()
    calls.answer.set()
    await keeping
    assert calls.registered == 1


@on_shared_stores
async def test_a_session_in_a_thread_that_leaves_registers_nothing(store: StoreUnderTest) -> None:
    async with store.make() as registry:
        for number in range(20):
            session = registry.session(AgentInfo("a"), interval=0.001, thread=True)
            await session.open()
            await asyncio.sleep(number / 2000)
            removing = asyncio.gather(registry.flush(), session.aclose())
            await removing
            assert not await is_registered(registry)


# --- the thread ---


@on_shared_stores
async def test_sessions_share_a_thread_until_the_last_one_has_left(store: StoreUnderTest) -> None:
    async with store.make() as registry:
        async with registry.session(AgentInfo("a"), interval=QUICK, thread=True) as a:
            async with registry.session(AgentInfo("b"), interval=QUICK, thread=True):
                assert threads() == 1
            first = a.last_beat_at
            await wait_until(lambda: a.last_beat_at != first, "the other session goes on")
        await wait_until(lambda: threads() == 0, "the thread has ended")
        async with a:
            assert threads() == 1
            assert [agent.id for agent in await registry.list()] == ["a"]


@on_shared_stores
async def test_closing_the_registry_ends_its_sessions_in_a_thread(
    store: StoreUnderTest, caplog: pytest.LogCaptureFixture
) -> None:
    async with store.make() as registry:
        session = registry.session(AgentInfo("a"), interval=QUICK, thread=True)
        await session.open()
    await wait_until(lambda: threads() == 0, "the thread has ended")
    await wait_until(lambda: "the session of agent 'a' has failed" in caplog.text, "the session has failed")
    with pytest.raises(RegistryClosedError):
        await session.aclose()
    assert "agent 'a' could not be deregistered and will go offline" in caplog.text
    assert not session.healthy
    with pytest.raises(RegistryClosedError, match="the session of agent 'a' is not open"):
        await session.update(current_load=1)


@pytest.mark.parametrize("store", ["sqlite-file"], indirect=True)  # The driver of Redis warns of its open sockets.
def test_an_event_loop_that_is_closed_ends_the_thread(store: StoreUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    async def enter() -> None:
        await registry
        await session.open()

    async def reopen() -> None:
        async with registry, session:
            assert await is_registered(registry)

    registry = store.make()
    session = registry.session(AgentInfo("a"), interval=QUICK, thread=True)
    with asyncio.Runner() as runner:
        runner.run(enter())
    end = time.monotonic() + 20
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert threads() == 0
    assert "the event loop was closed with open sessions (1)" in caplog.text
    with asyncio.Runner() as runner:
        runner.run(session.aclose())
        runner.run(reopen())


ABANDONED = """
import asyncio, sys, threading, time
from agentic import AgentInfo, open_registry

async def start():
    global registry, session
    registry = await open_registry(sys.argv[1])
    session = registry.session(AgentInfo("a"), interval=0.05, thread=True)
    await session.open()

def run_and_block():
    async def main():
        await start()
        entered.set()
        time.sleep(1000)
    asyncio.run(main())

entered = threading.Event()
if sys.argv[2] == "loop is left open":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
elif sys.argv[2] == "loop ends":
    asyncio.run(start())
else:
    threading.Thread(target=run_and_block, daemon=True).start()
    entered.wait()
"""


@pytest.mark.parametrize("how", ["loop is left open", "loop ends", "loop is blocked for ever"])
@on_shared_stores
async def test_the_thread_does_not_keep_a_program_from_exiting(store: StoreUnderTest, how: str) -> None:
    async with store.make() as registry:
        program = await asyncio.create_subprocess_exec(sys.executable, "-c", ABANDONED, registry.store, how)
        async with asyncio.timeout(20):
            assert await program.wait() == 0
        assert await is_registered(registry)


@on_shared_stores
async def test_a_forked_process_cannot_use_a_session_in_a_thread(store: StoreUnderTest) -> None:
    async with store.make() as registry, registry.session(AgentInfo("a"), thread=True) as session:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, outcome_in_a_child(session).encode())
            os._exit(0)
        await asyncio.to_thread(os.waitpid, child, 0)
        assert (
            os.read(reader, 1000) == b"the registry was opened before this process was forked: open one after the fork"
        )
        os.close(reader)
        os.close(writer)
        assert (await session.update(current_load=2)).current_load == 2


def outcome_in_a_child(session: AgentSession) -> str:
    asyncio._set_running_loop(None)  # noqa: SLF001  as in a child that does not return into the event loop
    try:
        asyncio.run(session.update(current_load=1))
    except RegistryClosedError as error:
        return str(error)
    return "it works"


# --- stores without a second connection ---


def refused(make: Callable[[], AgentRegistry]) -> str:
    registry = make()
    with pytest.raises(ConfigurationError) as raised:
        registry.session(AgentInfo("a"), thread=True)
    return str(raised.value)


def test_stores_that_one_event_loop_owns_refuse_a_thread(redis_url: str) -> None:
    assert refused(MemoryRegistry) == "thread: must be False for memory://, which cannot be opened in a second thread"
    assert refused(lambda: SQLiteRegistry(":memory:")).startswith("thread: must be False for :memory:")
    client = aioredis.Redis.from_url(redis_url)
    assert refused(lambda: RedisRegistry(client=client)).startswith("thread: must be False with client=")


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_a_thread_that_is_neither_true_nor_false_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="^thread:"):
        MemoryRegistry().session(AgentInfo("a"), thread=wrong)


async def test_a_thread_works_with_every_kind_of_redis(store: StoreUnderTest) -> None:
    async with store.make() as registry:
        if not isinstance(registry, RedisRegistry):
            return
        async with registry.session(AgentInfo("a"), interval=QUICK, thread=True) as session:
            first = session.last_beat_at
            await wait_until(lambda: session.last_beat_at != first, "a heartbeat was sent")

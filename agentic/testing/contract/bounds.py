"""Each call ends, even if a primitive of the backend hangs, ignores cancellation or raises any exception."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest

from agentic.agent import AgentInfo
from agentic.errors import BackendError, BackendUnavailableError, RegistryClosedError, RegistryError, RegistryOpenError
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import LONG_AGO, Contract, fill
from agentic.testing.contract.primitives import CALLS, run_first, scan
from agentic.testing.store import StoreUnderTest
from agentic.testing.waiting import wait_until

every_call = pytest.mark.parametrize("call", CALLS)


async def hang() -> None:
    await asyncio.Event().wait()


async def refuse() -> None:
    raise BackendError("refused")


class Stubborn:
    """Ignores cancellation until it is released."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.calls = 0
        self.cancelled = 0
        self.running = 0

    async def __call__(self) -> None:
        self.calls += 1
        self.running += 1
        while not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        self.running -= 1

    @asynccontextmanager
    async def released_on_exit(self) -> AsyncGenerator[None, None]:
        """Release it when the body ends or fails, and wait until it has ended."""
        try:
            yield
        finally:
            self.released.set()
            await wait_until(lambda: not self.running, "the primitive has ended")


async def outcome_of(call: Awaitable[object]) -> object:
    """Return the result of a call or the error that it raises; fail if it hangs."""
    async with asyncio.timeout(10):
        try:
            return await call
        except RegistryError as error:
            return error


def refuses_calls(registry: AgentRegistry) -> bool:
    try:
        registry.check_open()
    except RegistryClosedError:
        return True
    return False


async def open_with_short_timeout(registry: AgentRegistry) -> None:
    """Open a registry, retrying because its timeout may be too short on a busy machine."""

    async def opens() -> bool:
        return await outcome_of(registry.open()) is None

    await wait_until(opens, "the registry opens")


INTERRUPTIONS = [
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseExceptionGroup("two", [KeyboardInterrupt(), ValueError()]),
]


class Bounds(Contract):
    """Calls on a misbehaving store."""

    # --- a store that hangs ---

    @every_call
    async def test_a_call_ends_although_the_store_hangs(self, store: StoreUnderTest, call: str) -> None:
        primitive, make_call = CALLS[call]
        registry = store.make(timeout=0.3)
        restore = run_first(registry, primitive, hang)
        await open_with_short_timeout(registry)
        assert isinstance(await outcome_of(make_call(registry)), BackendUnavailableError)
        restore()
        await outcome_of(registry.aclose())

    @pytest.mark.parametrize("call", ["heartbeat", "heartbeat_many", "list", "reap", "store_time"])
    async def test_a_call_ends_although_the_store_ignores_its_cancellation(
        self, store: StoreUnderTest, call: str
    ) -> None:
        primitive, make_call = CALLS[call]
        registry = store.make(timeout=0.3)
        stubborn = Stubborn()
        run_first(registry, primitive, stubborn)
        async with stubborn.released_on_exit():
            await open_with_short_timeout(registry)
            assert isinstance(await outcome_of(make_call(registry)), BackendUnavailableError)
            await outcome_of(registry.aclose())
            assert stubborn.cancelled == stubborn.calls

    @pytest.mark.parametrize("call", ["list", "scan", "flush", "store_time", "diagnose"])
    async def test_a_cancelled_call_does_not_wait_for_the_store(self, store: StoreUnderTest, call: str) -> None:
        primitive, make_call = CALLS[call]
        registry = store.make(timeout=60)
        run_first(registry, primitive, hang)
        async with registry:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await make_call(registry)

    @pytest.mark.parametrize("action", [hang, None], ids=["hangs", "ignores its cancellation"])
    async def test_open_ends_although_the_store_hangs_and_leaves_nothing_open(
        self, store: StoreUnderTest, action: Callable[[], Awaitable[object]] | None
    ) -> None:
        before = store.connections()
        registry = store.make(timeout=0.3)
        stubborn = Stubborn()
        restore = run_first(registry, "open", action or stubborn)
        async with stubborn.released_on_exit():
            assert isinstance(await outcome_of(registry.open()), BackendUnavailableError)
            restore()
            if action is None:
                with pytest.raises(RegistryOpenError):  # Opening again now would leak the first connection.
                    await registry.open()
        await open_with_short_timeout(registry)  # Once the connection of the first try is closed.
        await outcome_of(registry.aclose())
        await wait_until(lambda: store.connections() == before, "no connection is left")

    async def test_opening_that_waits_goes_on_when_a_try_that_ignores_its_cancellation_has_ended(
        self, store: StoreUnderTest
    ) -> None:
        registry = store.make(timeout=0.3, wait=60)
        stubborn = Stubborn()
        restore = run_first(registry, "open", stubborn)
        async with stubborn.released_on_exit():
            opening = asyncio.ensure_future(registry.open())
            await wait_until(lambda: stubborn.cancelled > 0, "the first try is cancelled")
            restore()
            with pytest.raises(TimeoutError):  # Retries fail while the first try is still running.
                await asyncio.wait_for(asyncio.shield(opening), 1.5)
        await opening
        await outcome_of(registry.aclose())

    @pytest.mark.parametrize("action", [hang, None], ids=["hangs", "ignores its cancellation"])
    async def test_closing_ends_although_the_store_hangs(
        self, store: StoreUnderTest, action: Callable[[], Awaitable[object]] | None
    ) -> None:
        registry = store.make(timeout=0.3)
        stubborn = Stubborn()
        async with stubborn.released_on_exit():
            await open_with_short_timeout(registry)
            restore = run_first(registry, "close", action or stubborn)
            assert isinstance(await outcome_of(registry.aclose()), BackendUnavailableError)
            restore()
        run_first(registry, "open", refuse)

        async def is_refused() -> bool:
            return str(await outcome_of(registry.open())) == "refused"

        await wait_until(is_refused, "closing has ended, so that the registry can be opened again")

    async def test_an_open_that_fails_raises_its_own_error_although_disconnecting_fails_or_hangs(
        self, store: StoreUnderTest
    ) -> None:
        async def fail() -> None:
            raise ZeroDivisionError

        for action in (fail, hang):
            registry = store.make(timeout=0.3)
            run_first(registry, "open", refuse)
            run_first(registry, "close", action)
            error = await outcome_of(registry.open())
            assert str(error) == "refused"

    # --- cancelled, at any moment ---

    async def test_a_cancelled_open_leaves_nothing_open(self, store: StoreUnderTest) -> None:
        connections, tasks, threads = store.connections(), asyncio.all_tasks(), threading.active_count()
        chance = random.Random(1)
        for round_ in range(60):
            registry = store.make()
            opening = asyncio.create_task(registry.open())
            if round_ % 2:
                await asyncio.sleep(chance.uniform(0, 0.01))
            else:
                for _ in range(round_):
                    await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            await registry.aclose()
        assert asyncio.all_tasks() == tasks
        await wait_until(lambda: store.connections() == connections, "no connection is left")
        await wait_until(
            lambda: threading.active_count() <= threads + 1, "no thread is left"
        )  # anyio keeps one for a time

    @pytest.mark.parametrize("interrupted", ["insert", "close"])
    async def test_closing_goes_on_although_every_task_is_cancelled(
        self, store: StoreUnderTest, interrupted: str
    ) -> None:
        connections = store.connections()
        registry = store.make()
        begun: list[bool] = []

        async def hang_once() -> None:
            if not begun:
                begun.append(True)
                await hang()

        run_first(registry, interrupted, hang_once)
        await registry.open()
        call = asyncio.create_task(outcome_of(registry.register(AgentInfo("a"))))
        closing = asyncio.create_task(registry.aclose())
        await wait_until(lambda: bool(begun), f"{interrupted} is in progress")
        await wait_until(lambda: refuses_calls(registry), "closing has begun")
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        async with asyncio.timeout(10):
            await asyncio.wait([call, closing])
        await wait_until(lambda: store.connections() == connections, "no connection is left")
        async with registry:
            await registry.register(AgentInfo("a"))

    async def test_calls_end_although_every_task_but_their_callers_is_cancelled(self, registry: AgentRegistry) -> None:
        names = [f"agent-{n}" for n in range(20)]
        for turns in range(30):
            calls = [asyncio.create_task(registry.register(AgentInfo(name))) for name in names]
            walks = [asyncio.create_task(make_call(registry)) for make_call in (scan, lambda r: r.reap(60))]
            for _ in range(turns % 10):
                await asyncio.sleep(0)
            for task in asyncio.all_tasks() - {asyncio.current_task(), *calls, *walks}:
                task.cancel()
            async with asyncio.timeout(20):
                results = await asyncio.gather(*calls, *walks, return_exceptions=True)
            for result in results:
                assert isinstance(result, (AgentInfo, list, BackendError)), result
            await asyncio.gather(*(registry.register(AgentInfo(name)) for name in names))
        assert len(await registry.list()) == len(names)

    # --- interruptions ---

    @pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    @every_call
    def test_callers_get_an_error_for_any_exception_of_a_primitive_and_later_calls_work(
        self, store: StoreUnderTest, interruption: BaseException, call: str
    ) -> None:
        primitive, make_call = CALLS[call]
        interruptions = [interruption]

        async def interrupt() -> None:
            if interruptions:
                raise interruptions.pop()

        loop = asyncio.new_event_loop()

        def run(awaitable: Awaitable[object]) -> Any:
            """Continue the loop after an interruption, like a notebook."""
            task = asyncio.ensure_future(awaitable, loop=loop)
            for _ in range(3):
                try:
                    return loop.run_until_complete(task)
                except (KeyboardInterrupt, SystemExit):
                    assert not task.done()
            raise AssertionError("interrupted three times")

        registry = store.make(timeout=20)
        restore = run_first(registry, primitive, interrupt)
        try:
            run(registry.open())
            error = run(outcome_of(make_call(registry)))
            assert isinstance(error, BackendError)
            if not isinstance(interruption, asyncio.CancelledError):
                assert error.__cause__ is interruption
            restore()
            for other in ("register", "heartbeat", "update", "list", "reap", call):
                assert not isinstance(run(outcome_of(CALLS[other][1](registry))), BackendError)
            run(registry.flush())
            run(registry.aclose())
        finally:
            loop.close()

    # --- closed ---

    @every_call
    async def test_a_call_in_progress_when_the_registry_closes_ends(self, store: StoreUnderTest, call: str) -> None:
        primitive, make_call = CALLS[call]
        registry = store.make(timeout=0.2)
        run_first(registry, primitive, hang)
        await open_with_short_timeout(registry)
        in_progress = asyncio.create_task(outcome_of(make_call(registry)))
        await asyncio.sleep(0)
        await outcome_of(registry.aclose())
        assert isinstance(await in_progress, (RegistryClosedError, BackendUnavailableError))

    async def test_closing_lets_a_scan_go_on_for_as_long_as_the_timeout(self, store: StoreUnderTest) -> None:
        registry = store.make()
        await registry.open()
        await fill(registry, 1200)
        agents = registry.scan()
        seen = [await anext(agents)]
        closing = asyncio.create_task(registry.aclose())
        await asyncio.sleep(0.01)
        seen += [agent async for agent in agents]
        await closing
        assert len({agent.id for agent in seen}) == 1200

    async def test_abandoned_scans_leave_no_task(self, store: StoreUnderTest) -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        registry = store.make(timeout=60)
        await registry.open()
        await fill(registry, 1200)
        tasks = asyncio.all_tasks()
        for _ in range(10):
            async for _ in registry.scan():
                break
            left = registry.scan()
            await anext(left)
            del left
            unused = registry.scan()
            del unused
        gc.collect()
        await wait_until(lambda: asyncio.all_tasks() == tasks, "no task is left")
        async with asyncio.timeout(30):  # Half as long as closing waits for walks.
            await registry.aclose()
        assert problems == []

    # --- contexts ---

    async def test_primitives_do_not_run_in_a_callers_context(self, store: StoreUnderTest) -> None:
        caller: ContextVar[str] = ContextVar("caller", default="nobody")
        seen: dict[str, set[str]] = {}
        registry = store.make()

        def look_at(primitive: str) -> None:
            async def look() -> None:
                seen.setdefault(primitive, set()).add(caller.get())

            run_first(registry, primitive, look)

        primitives = {primitive for primitive, _ in CALLS.values()} | {"open", "close"}
        for primitive in primitives:
            look_at(primitive)
        caller.set("the opener")
        marked: list[str] = []
        async with registry:
            for name, (_, make_call) in CALLS.items():
                caller.set(name)
                await asyncio.gather(*(outcome_of(make_call(registry)) for _ in range(3)))
            await registry.register(AgentInfo("a", last_heartbeat=LONG_AGO))
            caller.set("the reaper")
            await registry.reap(timedelta(days=1), on_marked=lambda _: marked.append(caller.get()))
            assert marked == ["the reaper"]
        assert seen == {primitive: {"nobody"} for primitive in primitives}

"""Sessions and reapers as things that are opened and closed, and what becomes of a background task that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from agentic import (
    AgentInfo,
    AgentRegistry,
    AgentSession,
    BackendUnavailableError,
    MemoryRegistry,
    Reaper,
    RegistryClosedError,
    RegistryError,
    RegistryOpenError,
)
from agentic.backends.memory import MemoryBackend
from agentic.logs import FieldLogger
from agentic.service import Service
from agentic.testing import wait_until
from tests.support.stores import LONG_AGO
from tests.support.waiting import is_there

Make = Callable[[AgentRegistry], AgentSession | Reaper]


def session_of(registry: AgentRegistry) -> AgentSession:
    return registry.session(AgentInfo("a"), interval=0.02)


def reaper_of(registry: AgentRegistry) -> Reaper:
    return Reaper(registry, interval=0.02)


both = pytest.mark.parametrize("make", [session_of, reaper_of])


class Failing(Service):
    """A service whose background task fails when told to."""

    def __init__(self) -> None:
        super().__init__("the test's service", 5, FieldLogger(logging.getLogger("agentic.test")))
        self.fail = asyncio.Event()
        self.error: BaseException = ZeroDivisionError("in the background")
        self.ended = 0

    async def _begin(self) -> None:
        await asyncio.sleep(0)

    async def _serve(self) -> None:
        await self.fail.wait()
        raise self.error

    async def _end(self) -> None:
        self.ended += 1


async def in_a_task_of_its_own(call: Any) -> Any:
    return await asyncio.create_task(call)


def cancel_every_other_task() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


# --- opening and closing ---


@both
@pytest.mark.parametrize("pair", [("open", ()), ("__aenter__", (None, None, None))])
async def test_opened_in_one_task_and_closed_in_another(
    registry: AgentRegistry, make: Make, pair: tuple[str, tuple[None, ...]]
) -> None:
    enter, arguments = pair
    service = make(registry)
    await in_a_task_of_its_own(getattr(service, enter)())
    if isinstance(service, AgentSession):
        began_at = service.last_beat_at
        await wait_until(lambda: service.last_beat_at != began_at, "it sends heartbeats")
        assert await is_there(registry)()
    else:
        await registry.register(AgentInfo("silent", last_heartbeat=LONG_AGO))

        async def marked() -> bool:
            return (await registry.get("silent")).status == "offline"

        await wait_until(marked, "it sweeps")
    leave = service.aclose if enter == "open" else service.__aexit__
    await in_a_task_of_its_own(leave(*arguments))
    assert not await is_there(registry)()
    await service.aclose()


@pytest.fixture
async def session(registry: AgentRegistry) -> AsyncIterator[AgentSession]:
    async with registry.session(AgentInfo("a")) as session:
        yield session
    assert not await is_there(registry)()


async def test_a_session_as_a_fixture(session: AgentSession, registry: AgentRegistry) -> None:
    assert session.healthy
    assert await is_there(registry)()


async def test_entered_by_wait_for(registry: AgentRegistry) -> None:
    session = session_of(registry)
    await asyncio.wait_for(session.__aenter__(), 20)
    await session.__aexit__(None, None, None)
    assert not await is_there(registry)()


@both
async def test_what_is_open_is_not_opened_again(make: Make) -> None:
    async with MemoryRegistry() as registry, make(registry) as service:
        with pytest.raises(RegistryOpenError, match="is open already, or not yet closed"):
            async with service:
                pytest.fail("entered twice")
        with pytest.raises(RegistryOpenError):
            await service.open()
        assert isinstance(service, Reaper) or await is_there(registry)()


async def test_one_session_opened_by_two_tasks_at_once_is_open_once(registry: AgentRegistry) -> None:
    session = session_of(registry)
    outcomes = await asyncio.gather(session.open(), session.open(), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), RegistryOpenError]
    await session.aclose()


async def test_a_session_that_is_closed_may_be_opened_again(registry: AgentRegistry) -> None:
    session = session_of(registry)
    for _ in range(2):
        async with session:
            await session.update(current_load=1)
            assert await is_there(registry)()
        assert not await is_there(registry)()


class Down(MemoryBackend):
    """Its registrations fail while it is down."""

    down = False

    async def insert(self, agents: Any) -> Any:
        if self.down:
            raise BackendUnavailableError("down")
        return await super().insert(agents)


async def test_a_session_whose_registration_fails_removes_nobody_and_may_be_opened_again() -> None:
    store = Down()
    async with AgentRegistry(store) as registry:
        session = session_of(registry)
        async with session:
            pass
        await registry.register(AgentInfo("a", name="somebody else's"))
        store.down = True
        with pytest.raises(BackendUnavailableError):
            async with session:
                pytest.fail("entered")
        await session.aclose()
        assert (await registry.get("a")).name == "somebody else's"
        store.down = False
        async with session:
            assert session.healthy


async def test_closing_waits_for_an_opening_under_way(registry: AgentRegistry) -> None:
    session = session_of(registry)
    opening = asyncio.create_task(session.open())
    await asyncio.sleep(0)
    await session.aclose()
    await opening
    assert not await is_there(registry)()


async def test_closing_twice_at_once_closes_once() -> None:
    service = Failing()
    await service.open()
    await asyncio.gather(service.aclose(), service.aclose())
    assert service.ended == 1


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_aclose_closes(registry: AgentRegistry, times: int) -> None:
    session = session_of(registry)
    await session.open()
    closing = asyncio.create_task(session.aclose())
    for _ in range(times):
        await asyncio.sleep(0)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not await is_there(registry)()


def test_another_event_loop_is_refused_and_one_that_has_ended_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    service = Failing()
    first = asyncio.new_event_loop()
    first.run_until_complete(service.open())
    with pytest.raises(RegistryClosedError, match="the test's service was opened in another event loop"):
        asyncio.run(service.aclose())
    (task,) = asyncio.all_tasks(first)
    task.cancel()
    first.run_until_complete(asyncio.sleep(0))
    first.close()
    asyncio.run(service.aclose())
    assert "was not closed before its event loop ended" in caplog.text


# --- contexts ---


@pytest.mark.parametrize("closes", ["there", "elsewhere"])
async def test_callbacks_run_in_the_context_of_the_opening(closes: str) -> None:
    who = ContextVar("who", default="nobody")
    seen: list[str] = []

    async def opens(reaper: Reaper) -> None:
        who.set("the opener")
        await reaper.open()

    async with MemoryRegistry() as registry:
        await registry.register(AgentInfo("silent", last_heartbeat=LONG_AGO))
        reaper = Reaper(registry, interval=0.02, on_reaped=lambda _: seen.append(who.get()))
        await in_a_task_of_its_own(opens(reaper))
        who.set("somebody else")
        await wait_until(lambda: bool(seen), "the callback was called")
        await (reaper.aclose() if closes == "there" else in_a_task_of_its_own(reaper.aclose()))
    assert seen == ["the opener"]


# --- a background task that fails ---


async def plain() -> None:
    await asyncio.Event().wait()


async def in_a_scope() -> None:
    with anyio.CancelScope():
        await anyio.sleep_forever()


async def in_an_anyio_group() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)


async def in_an_asyncio_group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(plain())


async def in_a_timeout() -> None:
    async with asyncio.timeout(60):
        await plain()


@pytest.mark.parametrize("body", [plain, in_a_scope, in_an_anyio_group, in_an_asyncio_group, in_a_timeout])
@pytest.mark.parametrize("error", [ZeroDivisionError("once"), BaseExceptionGroup("two", [KeyError(), GeneratorExit()])])
async def test_an_error_cancels_the_body_and_comes_out_as_it_is(body: Any, error: BaseException) -> None:
    service = Failing()
    service.error = error
    with pytest.raises(type(error)) as caught:
        async with service:
            service.fail.set()
            await body()
    assert caught.value is error
    assert error.__context__ is None
    assert service.ended == 1
    await nothing_is_pending()


@pytest.mark.parametrize("outer", ["scope", "anyio group", "asyncio group", "timeout"])
async def test_what_is_around_sees_the_error_and_no_cancellation(outer: str) -> None:
    service = Failing()

    async def run() -> None:
        async with service:
            service.fail.set()
            await plain()

    with pytest.raises(ZeroDivisionError) if outer in {"scope", "timeout"} else pytest.raises(ExceptionGroup) as caught:
        match outer:
            case "scope":
                with anyio.CancelScope() as scope:
                    await run()
                assert not scope.cancelled_caught
            case "anyio group":
                async with anyio.create_task_group():
                    await run()
            case "asyncio group":
                async with asyncio.TaskGroup():
                    await run()
            case _:
                async with asyncio.timeout(60):
                    await run()
    error: BaseException = caught.value
    assert error is service.error or (isinstance(error, ExceptionGroup) and error.exceptions == (service.error,))


def after(turns: int, call: Callable[[], object]) -> None:
    """Call it so many turns of the event loop later."""
    asyncio.get_running_loop().call_soon(*((after, turns - 1, call) if turns else (call,)))


async def fail_and_then(turns: int, cancel: Callable[[], object]) -> None:
    """Let the background task fail, and something else cancel this task so many turns later."""
    async with Failing() as service:
        service.fail.set()
        after(turns, cancel)
        await plain()


@pytest.mark.parametrize("turns", range(8))
async def test_a_scope_around_that_is_cancelled_at_the_same_time(turns: int) -> None:
    failed = False
    scope = anyio.CancelScope()
    try:
        with scope:
            await fail_and_then(turns, scope.cancel)
    except ZeroDivisionError:
        failed = True
    assert failed or scope.cancelled_caught
    await nothing_is_pending()


@pytest.mark.parametrize("turns", range(8))
async def test_a_timeout_around_that_ends_at_the_same_time(turns: int) -> None:
    def end() -> None:
        with suppress(RuntimeError):  # It has ended already.
            timeout.reschedule(0)

    with pytest.raises((TimeoutError, ZeroDivisionError)):
        async with asyncio.timeout(60) as timeout:
            await fail_and_then(turns, end)
    await nothing_is_pending()


@pytest.mark.parametrize("turns", range(8))
async def test_a_task_that_is_cancelled_at_the_same_time(turns: int, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        await fail_and_then(turns, task.cancel)

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if not task.cancelled():
        assert isinstance(task.exception(), ZeroDivisionError)
    assert "the test's service has failed: in the background" in caplog.text


async def nothing_is_pending() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    for _ in range(3):
        await asyncio.sleep(0)


async def test_when_the_body_fails_as_well_both_come_out() -> None:
    service, original = Failing(), KeyError("body")
    with pytest.raises(ExceptionGroup) as caught:
        async with service:
            service.fail.set()
            try:
                await plain()
            finally:
                raise original
    assert caught.value.exceptions == (original, service.error)


async def test_a_body_that_swallows_its_cancellation_gets_the_error_at_its_end() -> None:
    service = Failing()
    with pytest.raises(ZeroDivisionError):
        async with service:
            service.fail.set()
            with pytest.raises(asyncio.CancelledError):
                await plain()


async def test_an_exception_of_the_body_comes_out_as_it_is() -> None:
    for original in (KeyError("body"), ExceptionGroup("mine", [KeyError()]), asyncio.CancelledError()):
        with pytest.raises(type(original)) as caught:
            async with Failing():
                raise original
        assert caught.value is original


@pytest.mark.parametrize("close", ["aclose", "__aexit__"])
async def test_an_error_of_what_was_opened_elsewhere_is_logged_at_once_and_raised_by_closing(
    close: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Failing()
    await in_a_task_of_its_own(service.open() if close == "aclose" else service.__aenter__())
    service.fail.set()
    await wait_until(lambda: "the test's service has failed: in the background" in caplog.text, "it is logged")
    with pytest.raises(ZeroDivisionError) as caught:
        await (service.aclose() if close == "aclose" else service.__aexit__(None, None, None))
    assert caught.value is service.error
    assert service.ended == 1
    await service.aclose()


# --- tasks that other code cancels ---


@both
async def test_a_background_task_that_other_code_cancels_is_an_error_of_its_body(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async with MemoryRegistry() as registry:
        with pytest.raises(RegistryError, match="the background task of the .* was cancelled by other code") as caught:
            async with make(registry):
                await asyncio.sleep(0)
                cancel_every_other_task()
                await plain()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert not await is_there(registry)()
    assert "was cancelled by other code" in caplog.text


async def test_a_background_task_that_returns_is_an_error_of_its_body() -> None:
    class Returning(Failing):
        async def _serve(self) -> None:
            pass

    with pytest.raises(RegistryError, match="the background task of the test's service returned"):
        async with Returning():
            await plain()


async def test_a_program_that_cancels_every_task_leaves_no_agent(registry: AgentRegistry) -> None:
    entered = asyncio.Event()

    async def run() -> None:
        async with registry.session(AgentInfo("a"), interval=0.02), Reaper(registry, interval=0.02):
            entered.set()
            await plain()

    running = asyncio.create_task(run())
    await entered.wait()
    cancel_every_other_task()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not await is_there(registry)()

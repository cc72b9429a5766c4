"""Opening and closing sessions and reapers, and failures of their background tasks."""

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
    """A service whose background task fails when `fail` is set."""

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


async def in_another_task(call: Any) -> Any:
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
    await in_another_task(getattr(service, enter)())
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
    await in_another_task(leave(*arguments))
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
async def test_an_open_service_cannot_be_opened_again(make: Make) -> None:
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


async def test_a_closed_session_can_be_opened_again(registry: AgentRegistry) -> None:
    session = session_of(registry)
    for _ in range(2):
        async with session:
            await session.update(current_load=1)
            assert await is_there(registry)()
        assert not await is_there(registry)()


class Down(MemoryBackend):
    """A store whose registrations fail while it is down."""

    down = False

    async def insert(self, agents: Any) -> Any:
        if self.down:
            raise BackendUnavailableError("down")
        return await super().insert(agents)


async def test_a_session_whose_registration_fails_removes_no_agent_and_can_be_opened_again() -> None:
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


async def test_closing_waits_for_an_open_in_progress(registry: AgentRegistry) -> None:
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


def test_closing_in_another_event_loop_is_refused_until_the_first_has_ended(caplog: pytest.LogCaptureFixture) -> None:
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


@pytest.mark.parametrize("closes", ["same task", "another task"])
async def test_callbacks_run_in_the_context_of_open(closes: str) -> None:
    who = ContextVar("who", default="nobody")
    seen: list[str] = []

    async def opens(reaper: Reaper) -> None:
        who.set("the opener")
        await reaper.open()

    async with MemoryRegistry() as registry:
        await registry.register(AgentInfo("silent", last_heartbeat=LONG_AGO))
        reaper = Reaper(registry, interval=0.02, on_reaped=lambda _: seen.append(who.get()))
        await in_another_task(opens(reaper))
        who.set("somebody else")
        await wait_until(lambda: bool(seen), "the callback was called")
        await (reaper.aclose() if closes == "same task" else in_another_task(reaper.aclose()))
    assert seen == ["the opener"]


# --- failures of the background task ---


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
async def test_an_error_cancels_the_body_and_is_raised_unchanged(body: Any, error: BaseException) -> None:
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
async def test_enclosing_scopes_see_the_error_and_no_cancellation(outer: str) -> None:
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


def after(iterations: int, call: Callable[[], object]) -> None:
    """Make a call after some iterations of the event loop."""
    asyncio.get_running_loop().call_soon(*((after, iterations - 1, call) if iterations else (call,)))


async def fail_and_then(iterations: int, cancel: Callable[[], object]) -> None:
    """Fail the background task, and call `cancel` some iterations of the event loop later."""
    async with Failing() as service:
        service.fail.set()
        after(iterations, cancel)
        await plain()


@pytest.mark.parametrize("iterations", range(8))
async def test_an_enclosing_scope_cancelled_at_the_same_time(iterations: int) -> None:
    failed = False
    scope = anyio.CancelScope()
    try:
        with scope:
            await fail_and_then(iterations, scope.cancel)
    except ZeroDivisionError:
        failed = True
    assert failed or scope.cancelled_caught
    await nothing_is_pending()


@pytest.mark.parametrize("iterations", range(8))
async def test_an_enclosing_timeout_that_ends_at_the_same_time(iterations: int) -> None:
    def end() -> None:
        with suppress(RuntimeError):  # It has ended already.
            timeout.reschedule(0)

    with pytest.raises((TimeoutError, ZeroDivisionError)):
        async with asyncio.timeout(60) as timeout:
            await fail_and_then(iterations, end)
    await nothing_is_pending()


@pytest.mark.parametrize("iterations", range(8))
async def test_a_task_that_is_cancelled_at_the_same_time(iterations: int, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        await fail_and_then(iterations, task.cancel)

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


async def test_an_error_of_the_body_and_one_of_the_task_are_raised_as_a_group() -> None:
    service, original = Failing(), KeyError("body")
    with pytest.raises(ExceptionGroup) as caught:
        async with service:
            service.fail.set()
            try:
                await plain()
            finally:
                raise original
    assert caught.value.exceptions == (original, service.error)


async def test_a_body_that_swallows_its_cancellation_raises_the_error_at_its_end() -> None:
    service = Failing()
    with pytest.raises(ZeroDivisionError):
        async with service:
            service.fail.set()
            with pytest.raises(asyncio.CancelledError):
                await plain()


async def test_an_exception_of_the_body_is_raised_unchanged() -> None:
    for original in (KeyError("body"), ExceptionGroup("mine", [KeyError()]), asyncio.CancelledError()):
        with pytest.raises(type(original)) as caught:
            async with Failing():
                raise original
        assert caught.value is original


@pytest.mark.parametrize("close", ["aclose", "__aexit__"])
async def test_an_error_of_a_service_opened_in_another_task_is_logged_and_raised_by_closing(
    close: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Failing()
    await in_another_task(service.open() if close == "aclose" else service.__aenter__())
    service.fail.set()
    await wait_until(lambda: "the test's service has failed: in the background" in caplog.text, "it is logged")
    with pytest.raises(ZeroDivisionError) as caught:
        await (service.aclose() if close == "aclose" else service.__aexit__(None, None, None))
    assert caught.value is service.error
    assert service.ended == 1
    await service.aclose()


# --- cancellation by other code ---


@both
async def test_a_background_task_cancelled_by_other_code_raises_from_its_body(
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


async def test_a_background_task_that_returns_raises_from_its_body() -> None:
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

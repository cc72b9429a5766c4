"""Calls on a store that never waits: made immediately, one by one, without blocking the event loop for long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from time import monotonic

import pytest

from agentic import AgentInfo, AgentStatus, BackendError, BackendUnavailableError, MemoryRegistry
from agentic.clock import system_clock
from agentic.dispatch.immediate import ImmediateLane


async def test_a_call_takes_effect_when_it_is_issued() -> None:
    seen: list[int] = []

    async def send(items: Sequence[int]) -> Sequence[int]:
        seen.extend(items)
        return items

    lane = ImmediateLane(send)
    calls = [lane("a", n) for n in range(3)]
    assert seen == [0, 1, 2]
    assert await asyncio.gather(*calls) == [0, 1, 2]


async def test_a_caller_that_polls_lets_other_tasks_run() -> None:
    async with MemoryRegistry() as registry:
        await registry.register(AgentInfo("a"))

        async def go_offline() -> None:
            await asyncio.sleep(0.01)
            await registry.update("a", status=AgentStatus.OFFLINE)

        going = asyncio.create_task(go_offline())
        async with asyncio.timeout(20):
            while (await registry.get("a")).status is not AgentStatus.OFFLINE:
                pass
        await going


async def test_a_caller_that_retries_a_failing_store_lets_other_tasks_run() -> None:
    fails = True

    def clock() -> datetime:
        if fails:
            raise BackendUnavailableError("the clock is down")
        return system_clock()

    async with MemoryRegistry(clock=clock) as registry:

        async def recover() -> None:
            nonlocal fails
            await asyncio.sleep(0.01)
            fails = False

        recovering = asyncio.create_task(recover())
        end = monotonic() + 20
        while fails and monotonic() < end:
            with suppress(BackendUnavailableError):
                await registry.register(AgentInfo("a"))
        assert not fails
        await recovering


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ZeroDivisionError(), ZeroDivisionError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(), SystemExit),
        (asyncio.CancelledError(), BackendError),
        (BackendError("down"), BackendError),
    ],
)
async def test_an_error_of_the_store_reaches_the_caller(raised: BaseException, expected: type[BaseException]) -> None:
    async def send(_: Sequence[int]) -> Sequence[int]:
        raise raised

    with pytest.raises(expected):
        await ImmediateLane(send)("a", 1)


async def test_a_store_that_is_declared_immediate_must_not_wait() -> None:
    async def send(items: Sequence[int]) -> Sequence[int]:
        await asyncio.sleep(0)
        return items

    with pytest.raises(RuntimeError, match="declared immediate"):
        await ImmediateLane(send)("a", 1)


async def test_cancelling_a_waiting_caller_logs_no_error() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    async def send(items: Sequence[int]) -> Sequence[int]:
        return items

    call = ImmediateLane(send)("a", 1)  # The first call waits for the event loop.
    assert not call.done()
    call.cancel()
    await asyncio.sleep(0)
    assert reported == []

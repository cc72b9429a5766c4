"""Calls that finish although their caller is cancelled."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from agentic.concurrency import finish


async def test_finish_returns_the_result_or_raises_the_error_of_the_call() -> None:
    async def value() -> int:
        return 7

    async def fail() -> None:
        raise KeyError

    assert await finish(value(), grace=1) == 7
    with pytest.raises(KeyError):
        await finish(fail(), grace=1)


@pytest.mark.parametrize("times", [1, 3])
async def test_finish_waits_for_the_call_although_cancelled(times: int) -> None:
    gate, done = asyncio.Event(), []

    async def call() -> None:
        await gate.wait()
        done.append(True)

    task = asyncio.create_task(finish(call(), grace=20))
    for _ in range(times):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_finish_waits_for_the_call_although_a_scope_is_cancelled() -> None:
    gate, done = asyncio.Event(), []

    async def call() -> None:
        await gate.wait()
        done.append(True)

    with anyio.CancelScope() as scope:
        scope.cancel()
        asyncio.get_running_loop().call_later(0.01, gate.set)
        await finish(call(), grace=20)
    assert scope.cancelled_caught
    assert done == [True]


async def test_finish_cancels_the_call_after_its_grace() -> None:
    ended = asyncio.Event()

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(finish(call(), grace=0.01))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ended.wait()


async def test_an_error_after_a_cancellation_is_dropped() -> None:
    gate = asyncio.Event()

    async def call() -> None:
        await gate.wait()
        raise KeyError

    task = asyncio.create_task(finish(call(), grace=20))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task

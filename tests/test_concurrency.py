"""How tasks end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
import pytest

from agentic.concurrency import finish, one_ahead


async def test_finish_returns_and_raises_what_the_call_does() -> None:
    async def value() -> int:
        return 7

    async def fail() -> None:
        raise KeyError

    assert await finish(value(), grace=1) == 7
    with pytest.raises(KeyError):
        await finish(fail(), grace=1)


@pytest.mark.parametrize("times", [1, 3])
async def test_finish_lets_the_call_end_though_cancelled(times: int) -> None:
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


async def test_finish_lets_the_call_end_though_a_scope_is_cancelled() -> None:
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


async def test_finish_gives_up_after_its_grace() -> None:
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


async def test_an_error_after_a_cancellation_is_dropped_quietly() -> None:
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


# --- one_ahead ---


class Pages:
    """Tells how far its pages were asked for, and whether it was closed."""

    def __init__(self) -> None:
        self.begun = 0
        self.closed = False

    async def each(self, error_at: int | None = None) -> AsyncGenerator[int, None]:
        try:
            for number in range(4):
                self.begun = number
                await asyncio.sleep(0)
                if number == error_at:
                    raise ValueError(number)
                yield number
        finally:
            self.closed = True


async def test_one_ahead_gives_every_page_in_order_and_is_one_ahead() -> None:
    pages = Pages()
    seen = [(page, pages.begun) async for page in one_ahead(pages.each())]
    assert seen == [(0, 1), (1, 2), (2, 3), (3, 3)]
    assert pages.closed


async def test_one_ahead_gives_what_came_before_an_error() -> None:
    pages = Pages()
    ahead = one_ahead(pages.each(error_at=2))
    assert [await anext(ahead), await anext(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        await anext(ahead)
    assert pages.closed


async def test_one_ahead_left_early_leaves_nothing_under_way() -> None:
    pages = Pages()
    async with aclosing(one_ahead(pages.each())) as ahead:
        assert await anext(ahead) == 0
    assert pages.closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_page_that_fails_after_the_consumer_has_left_is_not_reported_as_forgotten() -> None:
    reported: list[object] = []
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    ahead = one_ahead(Pages().each(error_at=1))

    async def leave(ahead: AsyncGenerator[int, None]) -> None:
        assert await anext(ahead) == 0
        await asyncio.sleep(0.01)  # The page ahead fails.

    loop.run_until_complete(leave(ahead))
    loop.close()  # Nothing can be closed any more.
    del ahead
    gc.collect()
    assert reported == []

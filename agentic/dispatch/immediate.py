"""Make each call immediately and unbatched, for stores that never wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from agentic.concurrency import as_exception

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

LONGEST_RUN: Final = 0.005
"""Seconds of calls without a pause, after which a call waits for the event loop, so that polling does not block it."""


class ImmediateLane(Generic[Item, Outcome]):
    """Calls of one kind. Each takes effect when it is issued."""

    def __init__(self, send: Callable[[Sequence[Item]], Coroutine[Any, Any, Sequence[Outcome]]]) -> None:
        """Use `send` for each call. It takes a batch, and must never wait."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._next_pause_at = 0.0

    def __call__(self, agent_id: str, item: Item) -> asyncio.Future[Outcome]:
        """Make one call. Await the result for its outcome.

        Raises:
            BaseException: `KeyboardInterrupt` or `SystemExit`, which must end the program, not the call alone.
        """
        future: asyncio.Future[Outcome] = self._loop.create_future()
        settle: Callable[[Any], None] = future.set_exception
        result: Any
        try:
            self._send([item]).send(None)
        except StopIteration as stop:
            (result,) = stop.value
            settle = future.set_result
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  passed on to the caller
            result = as_exception(error)
        else:
            result = RuntimeError("a store that is declared immediate must not wait")
        now = monotonic()
        if now < self._next_pause_at:
            settle(result)
        else:
            self._next_pause_at = now + LONGEST_RUN
            self._loop.call_soon(_settle, future, settle, result)
        return future


def _settle(future: asyncio.Future[Any], settle: Callable[[Any], None], result: Any) -> None:
    if not future.done():
        settle(result)

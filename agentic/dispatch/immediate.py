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
        """Make one call. Await the result for its outcome."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        try:
            self._send([item]).send(None)
        except StopIteration as stop:
            (outcome,) = stop.value
            now = monotonic()
            if now < self._next_pause_at:
                future.set_result(outcome)
            else:
                self._next_pause_at = now + LONGEST_RUN
                self._loop.call_soon(_resolve, future, outcome)
        except BaseException as error:  # noqa: BLE001  passed on to the caller
            future.set_exception(as_exception(error))
        else:
            future.set_exception(RuntimeError("a store that is declared immediate must not wait"))
        return future


def _resolve(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)

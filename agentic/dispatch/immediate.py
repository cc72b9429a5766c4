"""Make each call at once and by itself, for a store that never waits: batches would only cost time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from agentic.exchange import as_exception

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

LONGEST_RUN: Final = 0.005
"""Seconds after which a caller has to wait for the event loop's next turn, so that polling callers do not block it."""


class ImmediateLane(Generic[Item, Outcome]):
    """Calls of one kind, each of which takes effect when it is issued."""

    def __init__(self, send: Callable[[Sequence[Item]], Coroutine[Any, Any, Sequence[Outcome]]]) -> None:
        """Take what sends a batch; it must return without waiting for anything."""
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._next_turn_at = 0.0

    def __call__(self, agent_id: str, item: Item) -> asyncio.Future[Outcome]:
        """Make one call; await the result for its outcome."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        try:
            self._send([item]).send(None)
        except StopIteration as stop:
            (outcome,) = stop.value
            now = monotonic()
            if now < self._next_turn_at:
                future.set_result(outcome)
            else:
                self._next_turn_at = now + LONGEST_RUN
                self._loop.call_soon(_resolve, future, outcome)
        except BaseException as error:  # noqa: BLE001  the caller gets it
            future.set_exception(as_exception(error))
        else:
            future.set_exception(RuntimeError("a store that is declared immediate has waited"))
        return future


def _resolve(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)

"""Limit how long all sessions of one registry together wait for a store that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final


class DeregistrationBudget:
    """Limits how long all sessions of one registry together wait for deregistrations that get no answer.

    Each deregistration also has the registry's `timeout`. Once the budget is spent, further deregistrations are sent
    and finish in the background; leaving does not wait for them.
    """

    _MINIMUM: Final = 0.01
    """Seconds to wait even when the budget is spent, so that the call can be sent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = self._left = seconds
        self._calls: set[asyncio.Task[bool]] = set()

    def reset(self) -> None:
        """Restore the whole budget, because the store has answered."""
        self._left = self._seconds

    async def wait(self, call: Coroutine[Any, Any, bool]) -> None:
        """Wait for a call while the budget lasts. The call returns whether the store answered."""
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        started_at = monotonic()
        await asyncio.wait([task], timeout=max(self._left, self._MINIMUM))
        if task.done() and task.result():
            self.reset()
        else:
            self._left -= monotonic() - started_at

"""Run a reaper's callbacks concurrently with its sweeps, one at a time and in order."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from agentic.logs import FieldLogger
from agentic.text import printable

OnReaped = Callable[[list[str]], Awaitable[object] | object]
OnHeld = Callable[[int, int], Awaitable[object] | object]

MAX_WAITING: Final = 65_536
"""The most ids that may wait for `on_reaped`. If there are more, all waiting ids are logged as not delivered."""

IDS_PER_RECORD: Final = 100
"""The most ids in one log record."""


class Callbacks:
    """Calls `on_reaped` and `on_held`, each call in its own task and in a copy of the context of `__init__`.

    While a call is running, further ids are collected for the next one without duplicates; `on_held` gets only the
    latest numbers. All errors of a call are logged.
    """

    def __init__(
        self, logger: FieldLogger, on_reaped: OnReaped | None, on_held: OnHeld | None, slow_after: float
    ) -> None:
        """Log a warning for each call that takes longer than `slow_after` seconds."""
        self._logger = logger
        self._on_reaped = on_reaped
        self._on_held = on_held
        self._slow_after = slow_after
        self._context = copy_context()
        self._waiting: dict[str, _Call] = {}
        self._running: tuple[_Call, asyncio.Task[None]] | None = None
        self._closed = False

    def reaped(self, ids: Sequence[str]) -> None:
        """Queue these ids for the next call of `on_reaped`."""
        if self._on_reaped is None:
            return
        call = self._waiting.setdefault("on_reaped", _Call("on_reaped", self._on_reaped))
        call.ids.update(dict.fromkeys(ids))
        if self._closed or len(call.ids) > MAX_WAITING:
            self._log(self._waiting.pop("on_reaped"), "was not called")
        self._call_next()

    def held(self, stale: int, live: int) -> None:
        """Queue a call of `on_held`, replacing one that is waiting."""
        if self._on_held is not None:
            self._waiting["on_held"] = _Call("on_held", self._on_held, (stale, live))
            self._call_next()

    async def aclose(self, seconds: float) -> None:
        """Wait up to `seconds` for all calls; then cancel the running one, and log what was not delivered."""
        end = monotonic() + seconds
        try:
            while self._running is not None and (left := end - monotonic()) > 0:
                await asyncio.wait([self._running[1]], timeout=left)
        finally:
            self._closed = True
            if self._running is not None:
                call, task = self._running
                task.cancel()
                self._log(call, "was cancelled because it had not returned when the reaper ended")
            for call in self._waiting.values():
                self._log(call, "was not called")
            self._waiting.clear()

    def _call_next(self) -> None:
        if self._running is not None or self._closed or not self._waiting:
            return
        call = self._waiting.pop(next(iter(self._waiting)))
        task = asyncio.create_task(call.run(), context=self._context.copy())
        self._running = (call, task)
        slow = asyncio.get_running_loop().call_later(self._slow_after, self._warn_slow, call)
        task.add_done_callback(lambda _: slow.cancel())
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._running is None:
            return
        call, self._running = self._running[0], None
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            error = cancelled
        if error is not None and not self._closed:
            self._log(call, "failed", error)
        self._call_next()

    def _warn_slow(self, call: _Call) -> None:
        self._logger.warning("%s has been running for %g s; sweeps continue meanwhile", call.name, self._slow_after)

    def _log(self, call: _Call, what: str, error: BaseException | None = None) -> None:
        if not call.ids:
            self._logger.error("%s %s", call.name, what, exc_info=error)
        ids = [printable(agent_id) for agent_id in call.ids]
        for start in range(0, len(ids), IDS_PER_RECORD):
            part = ids[start : start + IDS_PER_RECORD]
            self._logger.error(
                "%s %s; its agents, now offline: %s",
                call.name,
                what,
                ", ".join(part),
                exc_info=error,
                extra={"count": len(part)},
            )


@dataclass(eq=False, slots=True)
class _Call:
    name: str
    function: Callable[..., object]
    numbers: tuple[int, ...] = ()
    ids: dict[str, None] = field(default_factory=dict)

    async def run(self) -> None:
        result = self.function(*self.numbers) if self.numbers else self.function(list(self.ids))
        if inspect.isawaitable(result):
            await result

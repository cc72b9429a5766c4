"""Gather the calls of many callers into few batches.

Each kind of call has a lane. Calls that arrive while a lane's batches are under way wait in its queue and leave
together as its next batch. There is no timer: a call that finds its lane idle leaves in the event loop's next turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from copy import copy
from time import monotonic
from typing import Any, Final, Generic, TypeVar, cast

from agentic.dispatch.ordering import Call, Ordering
from agentic.errors import BackendError, RegistryClosedError
from agentic.exchange import SLACK, as_exception, no_answer, start_detached

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

BATCH_SIZE: Final = 256
"""The most calls in one batch."""

MAX_PENDING: Final = 16_384
"""The most calls that are queued or under way; further ones wait outside, in order."""

Send = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]]
"""Send a batch; return one outcome for each item, in order, or raise where the whole batch fails."""


class Batcher:
    """Gathers single calls into batches.

    - Calls on one agent take effect in the order in which they were issued, as `Ordering` describes.
    - A batch that fails fails its own calls alone, each with an exception of its own.
    - A cancelled caller harms no other; its call is dropped if it has not left yet.
    - A call ends within `timeout` seconds of being issued, or a twentieth more, including the time it waits for room
      and for earlier calls. A batch is cancelled when all its calls are overdue; its agents' next calls leave when it
      has ended.
    - Batches run in no caller's context.

    Belongs to the event loop in which it is made.

    Attributes:
        timeout: Seconds a call may take.
        closed: Whether calls are refused.
        pending: How many calls are queued or under way.
        outside: Calls that wait for room.
        order: Which calls may leave.
    """

    def __init__(self, timeout: float, max_batches: int) -> None:
        """Make one without lanes.

        Args:
            timeout: Seconds a call may take.
            max_batches: The most batches of one lane that are under way at once.
        """
        self.timeout = timeout
        self.closed = False
        self.pending = 0
        self.outside: deque[Call] = deque()
        self.order = Ordering()
        self.max_batches = max_batches
        self._loop = asyncio.get_running_loop()
        self.create_future = self._loop.create_future
        self._lanes: list[Lane[Any, Any]] = []
        self._workers: dict[asyncio.Task[None], list[Call]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def lane(self, send: Send[Item, Outcome], *, commutes: bool = False) -> Lane[Item, Outcome]:
        """Return a lane for one kind of call.

        Args:
            send: Sends one batch.
            commutes: Two of these calls on one agent may take effect in any order.
        """
        lane = Lane(self, send, commutes)
        self._lanes.append(lane)
        return lane

    async def drain(self) -> None:
        """Wait until every call has ended, at most `timeout` seconds; then fail the rest with `RegistryClosedError`."""
        end = monotonic() + self.timeout
        try:
            while self._workers and (left := end - monotonic()) > 0:
                await asyncio.wait(self._workers, timeout=left)
        finally:
            self._close()
        if self._workers:
            await asyncio.wait(self._workers, timeout=self.timeout * SLACK)

    def _close(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for worker in self._workers:
            _cancel_once(worker)
        for *_, future, _ in self._calls():
            if not future.done():
                future.set_exception(RegistryClosedError("the registry was closed before the store answered"))
        for lane in self._lanes:
            lane.queue.clear()
        self.order.clear()
        self.outside.clear()
        self.pending = 0

    # --- deadlines ---

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._fail_overdue, context=Context())

    def _fail_overdue(self) -> None:
        """Fail each overdue call, wherever it is, and cancel each batch whose calls are all overdue."""
        now = oldest = monotonic()
        due = now - self.timeout
        for *_, future, issued in self._calls():
            if future.done():
                continue
            if issued <= due:
                future.set_exception(no_answer(self.timeout))
            elif issued < oldest:
                oldest = issued
        for worker, calls in self._workers.items():
            latest = max((issued for *_, issued in calls), default=now)
            if latest <= due:
                _cancel_once(worker)
            elif latest < oldest:
                oldest = latest
        self._timer = None
        if self.pending:
            # Nothing is overdue before the oldest call is. Scanning 16,384 calls takes milliseconds, so scan rarely.
            self._start_timer(max(oldest + self.timeout - now, self.timeout * SLACK))

    def _calls(self) -> Iterator[Call]:
        for calls in self._workers.values():
            yield from calls
        for lane in self._lanes:
            yield from lane.queue
        yield from self.order.blocked()
        yield from self.outside

    # --- batches ---

    def start_worker(self, lane: Lane[Any, Any]) -> None:
        """Start to send what is queued in a lane."""
        calls: list[Call] = []
        worker = start_detached(self._send_until_idle(lane, calls))
        lane.workers.add(worker)
        self._workers[worker] = calls

        def ended(_: object) -> None:
            del self._workers[worker]
            lane.workers.discard(worker)
            if worker.cancelled() or worker.exception() is not None or worker.cancelling():
                # By its deadline, or by a program that cancels every task it finds. Its callers have the error.
                self._continue(lane)

        worker.add_done_callback(ended)
        if self._timer is None:
            self._start_timer(self.timeout)

    def _continue(self, lane: Lane[Any, Any]) -> None:
        if lane.queue and len(lane.workers) < self.max_batches:
            self.start_worker(lane)

    async def _send_until_idle(self, lane: Lane[Any, Any], calls: list[Call]) -> None:
        worker = cast("asyncio.Task[None]", asyncio.current_task())
        while not worker.cancelling() and self._take(lane, calls):
            try:
                outcomes = await lane.send([item for _, _, item, _, _ in calls])
                if len(outcomes) != len(calls):
                    raise BackendError(f"the store gave {len(outcomes)} answers to {len(calls)} calls")
            except BaseException as error:
                if not self._loop.is_closed():  # Else nobody awaits the calls any more.
                    self._fail(calls, as_exception(error))
                if not isinstance(error, Exception):
                    raise
            else:
                self._succeed(calls, outcomes)
        lane.workers.discard(worker)  # At once: the next call starts a worker.

    def _take(self, lane: Lane[Any, Any], calls: list[Call]) -> bool:
        """Move the next calls from the queue, but for those whose callers have gone; return whether there are any."""
        queue = lane.queue
        while queue and len(calls) < BATCH_SIZE:
            call = queue.popleft()
            if call[3].done():
                self._leave([call])
            else:
                calls.append(call)
        return bool(calls)

    def _succeed(self, calls: list[Call], outcomes: Sequence[Any]) -> None:
        if self.closed:
            return
        for (_, _, _, future, _), outcome in zip(calls, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
        self._leave(calls)

    def _fail(self, calls: list[Call], error: Exception) -> None:
        if self.closed:
            return
        for _, _, _, future, _ in calls:
            if not future.done():
                future.set_exception(own(error))
        self._leave(calls)

    def _leave(self, calls: list[Call]) -> None:
        """Empty a list of calls that have ended; let those start that waited for them."""
        unblocked = self.order.leave(calls)
        self.pending -= len(calls)
        calls.clear()
        for call in unblocked:
            self._enqueue(call)
        while self.outside and self.pending < MAX_PENDING:
            self.pending += 1
            call = self.outside.popleft()
            if self.order.enter(call):
                self._enqueue(call)

    def _enqueue(self, call: Call) -> None:
        lane = cast("Lane[Any, Any]", call[0])
        lane.queue.append(call)
        self._continue(lane)


class Lane(Generic[Item, Outcome]):
    """Calls of one kind.

    Attributes:
        send: Sends one batch.
        commutes: Two of these calls on one agent may take effect in any order.
        queue: Calls that leave with the next batch.
        workers: The tasks that send its batches.
    """

    def __init__(self, batcher: Batcher, send: Send[Item, Outcome], commutes: bool) -> None:
        self._batcher = batcher
        self.send = send
        self.commutes = commutes
        self.queue: deque[Call] = deque()
        self.workers: set[asyncio.Task[None]] = set()

    def __call__(self, agent_id: str, item: Item) -> asyncio.Future[Outcome]:
        """Queue one item for an agent; await the result for its outcome.

        Raises:
            RegistryClosedError: The batcher is closed.
        """
        batcher = self._batcher
        if batcher.closed:
            raise RegistryClosedError
        future: asyncio.Future[Outcome] = batcher.create_future()
        call = (self, agent_id, item, future, monotonic())
        if batcher.pending >= MAX_PENDING:
            batcher.outside.append(call)
            return future
        batcher.pending += 1
        if batcher.order.enter(call):
            self.queue.append(call)
            if len(self.workers) < batcher.max_batches:
                batcher.start_worker(self)
        return future


def _cancel_once(worker: asyncio.Task[None]) -> None:
    """Cancel a worker, unless it is being cancelled: a second time would interrupt its cleaning up."""
    if not worker.cancelling():
        worker.cancel()


def own(error: Exception) -> Exception:
    """Return a copy of an error for one of the callers that share it; a shared traceback would grow with each raise.

    An error that cannot be copied, since its constructor takes other arguments than it keeps, is returned itself.
    """
    try:
        copied = copy(error)
    except Exception:  # noqa: BLE001  whatever its constructor raises
        return error
    copied.__cause__ = error.__cause__
    return copied.with_traceback(error.__traceback__)

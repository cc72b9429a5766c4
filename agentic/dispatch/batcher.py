"""Combine the calls of many callers into few batches.

Each kind of call has a lane. Calls that arrive while a lane's batches are in flight wait in its queue and are sent
together as its next batch. Batching adds no delay: if the lane is idle, a call is sent in the next iteration of the
event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from copy import copy
from time import monotonic
from typing import Any, Final, Generic, TypeVar, cast

from agentic.concurrency import SLACK, as_exception, start_detached, timeout_error
from agentic.dispatch.ordering import Call, Ordering
from agentic.errors import BackendError, RegistryClosedError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

BATCH_SIZE: Final = 256
"""The most calls in one batch."""

MAX_PENDING: Final = 16_384
"""The most calls that are queued or in flight; further calls wait in `overflow`, in order."""

Send = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]]
"""Send a batch. Return one outcome per item, in order, or raise if the whole batch fails."""


class Batcher:
    """Combines single calls into batches.

    - Calls on one agent take effect in the order in which they were issued, as described in `Ordering`.
    - A failed batch fails only its own calls, each with its own exception.
    - Cancelling a caller does not affect other callers. A cancelled call that has not been sent is dropped.
    - A call ends within `timeout` seconds after it was issued, plus at most a twentieth. This includes waiting for
      capacity and for earlier calls. A batch is cancelled when all its calls are overdue; the next calls on its agents
      are sent when it has ended.
    - Batches run in an empty context.

    It belongs to the event loop in which it was created.

    Attributes:
        timeout: Seconds a call may take.
        closed: Whether calls are refused.
        pending: The number of calls that are queued or in flight.
        overflow: Calls that wait because `pending` is at `MAX_PENDING`.
        order: Decides which calls may be sent.
    """

    def __init__(self, timeout: float, max_batches: int) -> None:
        """Create a batcher without lanes.

        Args:
            timeout: Seconds a call may take.
            max_batches: The most batches of one lane that are in flight at once.
        """
        self.timeout = timeout
        self.closed = False
        self.pending = 0
        self.overflow: deque[Call] = deque()
        self.order = Ordering()
        self.max_batches = max_batches
        self._loop = asyncio.get_running_loop()
        self.create_future = self._loop.create_future
        self._lanes: list[Lane[Any, Any]] = []
        self._workers: dict[asyncio.Task[None], list[Call]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def lane(self, send: Send[Item, Outcome], *, commutes: bool = False) -> Lane[Item, Outcome]:
        """Create a lane for one kind of call.

        Args:
            send: Sends one batch.
            commutes: Whether these calls on one agent may take effect in any order.
        """
        lane = Lane(self, send, commutes)
        self._lanes.append(lane)
        return lane

    async def close(self) -> None:
        """Wait up to `timeout` seconds for all calls to end; then fail the rest with `RegistryClosedError`."""
        end = monotonic() + self.timeout
        try:
            while self._workers and (left := end - monotonic()) > 0:
                await asyncio.wait(self._workers, timeout=left)
        finally:
            self._fail_all()
        if self._workers:
            await asyncio.wait(self._workers, timeout=self.timeout * SLACK)

    def _fail_all(self) -> None:
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
        self.overflow.clear()
        self.pending = 0

    # --- deadlines ---

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._fail_overdue, context=Context())

    def _fail_overdue(self) -> None:
        """Fail all overdue calls, and cancel each batch whose calls are all overdue."""
        now = oldest = monotonic()
        due = now - self.timeout
        for *_, future, issued in self._calls():
            if future.done():
                continue
            if issued <= due:
                future.set_exception(timeout_error(self.timeout))
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
            # No call is overdue before the oldest one. Scanning 16,384 calls takes milliseconds, so scan rarely.
            self._start_timer(max(oldest + self.timeout - now, self.timeout * SLACK))

    def _calls(self) -> Iterator[Call]:
        for calls in self._workers.values():
            yield from calls
        for lane in self._lanes:
            yield from lane.queue
        yield from self.order.blocked()
        yield from self.overflow

    # --- batches ---

    def start_worker(self, lane: Lane[Any, Any]) -> None:
        """Start sending the queued calls of a lane."""
        calls: list[Call] = []
        worker = start_detached(self._send_until_idle(lane, calls))
        lane.workers.add(worker)
        self._workers[worker] = calls

        def ended(_: object) -> None:
            del self._workers[worker]
            lane.workers.discard(worker)
            if worker.cancelled() or worker.exception() is not None or worker.cancelling():
                # It was cancelled at its deadline, or by a program that cancels every task. Its callers got the error.
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
                outcomes = await lane.send([call[2] for call in calls])
                if len(outcomes) != len(calls):
                    raise BackendError(f"the store returned {len(outcomes)} outcomes for {len(calls)} calls")
            except BaseException as error:
                if not self._loop.is_closed():  # Otherwise nothing awaits the calls.
                    self._fail(calls, as_exception(error))
                if not isinstance(error, Exception):
                    raise
            else:
                self._succeed(calls, outcomes)
        lane.workers.discard(worker)  # Immediately, so that the next call starts a worker.

    def _take(self, lane: Lane[Any, Any], calls: list[Call]) -> bool:
        """Move the next calls from the queue to `calls`, dropping cancelled ones. Return whether there are any."""
        queue = lane.queue
        while queue and len(calls) < BATCH_SIZE:
            taken = [queue.popleft() for _ in range(min(len(queue), BATCH_SIZE - len(calls)))]
            live = [call for call in taken if not call[3].done()]
            calls += live
            if len(live) < len(taken):
                self._leave([call for call in taken if call[3].done()])
        return bool(calls)

    def _succeed(self, calls: list[Call], outcomes: Sequence[Any]) -> None:
        if self.closed:
            return
        for call, outcome in zip(calls, outcomes, strict=True):
            future = call[3]
            if not future.done():
                future.set_result(outcome)
        self._leave(calls)

    def _fail(self, calls: list[Call], error: Exception) -> None:
        if self.closed:
            return
        for _, _, _, future, _ in calls:
            if not future.done():
                future.set_exception(copy_error(error))
        self._leave(calls)

    def _leave(self, calls: list[Call]) -> None:
        """Clear a list of calls that have ended, and enqueue the calls that they blocked."""
        unblocked = self.order.leave(calls)
        self.pending -= len(calls)
        calls.clear()
        for call in unblocked:
            self._enqueue(call)
        while self.overflow and self.pending < MAX_PENDING:
            self.pending += 1
            call = self.overflow.popleft()
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
        commutes: Whether these calls on one agent may take effect in any order.
        queue: Calls to send in the next batch.
        workers: The tasks that send its batches.
    """

    def __init__(self, batcher: Batcher, send: Send[Item, Outcome], commutes: bool) -> None:
        self._batcher = batcher
        self.send = send
        self.commutes = commutes
        self.queue: deque[Call] = deque()
        self.workers: set[asyncio.Task[None]] = set()

    def __call__(self, agent_id: str, item: Item) -> asyncio.Future[Outcome]:
        """Queue one item for an agent. Await the result for its outcome.

        Raises:
            RegistryClosedError: The batcher is closed.
        """
        batcher = self._batcher
        if batcher.closed:
            raise RegistryClosedError
        future: asyncio.Future[Outcome] = batcher.create_future()
        call = (self, agent_id, item, future, monotonic())
        if batcher.pending >= MAX_PENDING:
            batcher.overflow.append(call)
            return future
        batcher.pending += 1
        if batcher.order.enter(call):
            self.queue.append(call)
            if len(self.workers) < batcher.max_batches:
                batcher.start_worker(self)
        return future


def _cancel_once(worker: asyncio.Task[None]) -> None:
    """Cancel a worker unless it is being cancelled, because a second cancellation would interrupt its cleanup."""
    if not worker.cancelling():
        worker.cancel()


def copy_error(error: Exception) -> Exception:
    """Copy an error for one of several callers, because a shared traceback would grow with each raise.

    An error is returned uncopied if its constructor does not accept its `args`.
    """
    try:
        copied = copy(error)
    except Exception:  # noqa: BLE001  its constructor may raise anything
        return error
    copied.__cause__ = error.__cause__
    return copied.with_traceback(error.__traceback__)

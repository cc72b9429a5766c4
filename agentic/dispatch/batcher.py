"""Many awaiting callers, one write to the store.

Each kind of call has a lane. Calls that arrive while a lane's flushes are under way gather in its queue and leave
together as its next flush. There is no timer: a call that finds its lane idle leaves in the event loop's next turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any, Final, TypeVar

from agentic.errors import BackendError, RegistryClosedError
from agentic.exchange import SLACK, cancelled, interrupted, no_answer, retrieve, start_detached

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

BATCH_SIZE: Final = 256
"""How many calls one flush carries at most."""

MAX_PENDING: Final = 16_384
"""How many calls may be lined up or under way at once; further ones wait outside, in order."""

Send = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]]
"""Sends items to the store in one go; returns one outcome for each, in order, or raises where all of it fails."""

Lane = Callable[[str, Item], Awaitable[Outcome]]
"""Sends one item for one agent, in whatever company; what it returns brings that item's outcome."""

_Call = tuple[str, Any, "asyncio.Future[Any]", float]
"""One item on its way: its agent's id, the item, the future that its caller awaits, when it was issued."""


class Batcher:
    """Gathers single calls into flushes.

    - Calls on one agent take effect in the order they were issued: a call leaves when the agent's earlier ones have
      ended, but for those of its own lane that it commutes with.
    - A flush that fails fails its own calls alone, each with an exception of its own.
    - A cancelled caller harms no other; its call is dropped if it has not left yet.
    - A call ends within `timeout` seconds of being issued, or a twentieth more, waiting for room and for its turn
      included. A flush is cancelled when all its calls are overdue; its agents' next calls leave when it has ended.
    - Flushes run in no caller's context.

    Belongs to the event loop in which it is made.
    """

    def __init__(self, timeout: float, max_batches: int) -> None:
        self.timeout = timeout
        self._max_batches = max_batches
        self._loop = asyncio.get_running_loop()
        self._queues: list[_Queue] = []
        self._turns: dict[str, _Queue | deque[_Turn]] = {}
        self._pending = 0
        self._waiting: deque[tuple[_Queue, _Call]] = deque()
        self._workers: dict[asyncio.Task[None], list[_Call]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def lane(self, send: Send[Item, Outcome], *, commutes: bool = False) -> Lane[Item, Outcome]:
        """Return a lane for one kind of call: a function that takes an agent's id and one item to send for it.

        The function raises `RegistryClosedError` after `drain`.

        Args:
            send: Sends one flush.
            commutes: Two of these calls on one agent may take effect in any order.
        """
        queue = _Queue(send, commutes)
        self._queues.append(queue)
        make_future, turns, calls = self._loop.create_future, self._turns, queue.calls

        # Every call of a fleet passes through here: local names, and a straight path for the usual call.
        def issue(agent_id: str, item: Item) -> asyncio.Future[Outcome]:
            if self._closed:
                raise RegistryClosedError
            future = make_future()
            call = (agent_id, item, future, monotonic())
            if self._pending >= MAX_PENDING:
                self._waiting.append((queue, call))
                return future
            self._pending += 1
            if agent_id in turns:
                self._line_up(queue, call)
                return future
            turns[agent_id] = queue
            calls.append(call)
            if queue.workers < self._max_batches:
                self._start_worker(queue)
            return future

        return issue

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
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for worker in self._workers:
            _cancel_once(worker)
        for _, _, future, _ in self._calls():
            if not future.done():
                future.set_exception(RegistryClosedError("the registry was closed before the store answered"))
        for queue in self._queues:
            queue.calls.clear()
        self._turns.clear()
        self._waiting.clear()
        self._pending = 0

    # --- deadlines ---

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._fail_overdue, context=Context())

    def _fail_overdue(self) -> None:
        """Fail each overdue call, wherever it is, and cancel each flush of which all calls are overdue."""
        now = oldest = monotonic()
        due = now - self.timeout
        for _, _, future, issued in self._calls():
            if future.done():
                continue
            if issued <= due:
                future.set_exception(no_answer(self.timeout))
            elif issued < oldest:
                oldest = issued
        for worker, calls in self._workers.items():
            latest = max((issued for _, _, _, issued in calls), default=now)
            if latest <= due:
                _cancel_once(worker)
            elif latest < oldest:
                oldest = latest
        self._timer = None
        if self._pending:
            # Nothing is due before the oldest; to look through all calls takes milliseconds when there are many.
            self._start_timer(max(oldest + self.timeout - now, self.timeout * SLACK))

    def _calls(self) -> Iterator[_Call]:
        for calls in self._workers.values():
            yield from calls
        for queue in self._queues:
            yield from queue.calls
        for turns in self._turns.values():
            if not isinstance(turns, _Queue):
                yield from chain.from_iterable(turn.held for turn in turns)
        yield from (call for _, call in self._waiting)

    # --- turns: the order of calls on one agent ---
    # A turn is the calls of one lane on one agent that may be under way together: several where they commute, else one.
    # The next turn begins when all of them have ended. Most agents have one call under way, if any: the queue of its
    # lane then stands for the agent's turns.

    def _line_up(self, queue: _Queue, call: _Call) -> None:
        """Let a call join the turns of an agent that has calls under way."""
        agent_id = call[0]
        turns = self._turns[agent_id]
        if isinstance(turns, _Queue):
            turns = self._turns[agent_id] = deque([_Turn(turns)])
        last = turns[-1]
        if last.queue is not queue or not queue.commutes:
            turns.append(_Turn(queue, [call]))
            return
        last.unended += 1
        if last is turns[0]:
            self._enqueue(queue, call)
        else:
            last.held.append(call)

    def _ended(self, agent_id: str) -> None:
        """Take note that a call of the agent's present turn has ended."""
        turns = self._turns[agent_id]
        if not isinstance(turns, _Queue):
            turns[0].unended -= 1
            if turns[0].unended:
                return
            turns.popleft()
            if turns:
                self._begin(turns[0])
                return
        del self._turns[agent_id]

    def _begin(self, turn: _Turn) -> None:
        held, turn.held = turn.held, []
        for call in held:
            self._enqueue(turn.queue, call)

    def _make_room(self, ended: int) -> None:
        """Let in as many of those that wait outside as have ended."""
        self._pending -= ended
        while self._waiting and self._pending < MAX_PENDING:
            queue, call = self._waiting.popleft()
            self._pending += 1
            if call[0] in self._turns:
                self._line_up(queue, call)
            else:
                self._turns[call[0]] = queue
                self._enqueue(queue, call)

    # --- flushes ---

    def _enqueue(self, queue: _Queue, call: _Call) -> None:
        queue.calls.append(call)
        if queue.workers < self._max_batches:
            self._start_worker(queue)

    def _start_worker(self, queue: _Queue) -> None:
        queue.workers += 1
        calls: list[_Call] = []
        worker = start_detached(self._flush_until_idle(queue, calls))
        self._workers[worker] = calls
        worker.add_done_callback(partial(self._worker_ended, queue))
        if self._timer is None:
            self._start_timer(self.timeout)

    def _worker_ended(self, queue: _Queue, worker: asyncio.Task[None]) -> None:
        retrieve(worker)  # Its callers have the exception.
        del self._workers[worker]
        queue.workers -= 1
        if queue.calls:  # It was cancelled: by its deadline, or by a program that cancels every task it finds.
            self._start_worker(queue)

    async def _flush_until_idle(self, queue: _Queue, calls: list[_Call]) -> None:
        worker = asyncio.current_task()
        while worker and not worker.cancelling() and self._take(queue, calls):
            await self._flush(queue, calls)

    def _take(self, queue: _Queue, calls: list[_Call]) -> bool:
        """Move the next calls from the queue, but for those whose callers have gone; tell whether there are any."""
        waiting = queue.calls
        while waiting and len(calls) < BATCH_SIZE:
            call = waiting.popleft()
            if not call[2].done():
                calls.append(call)
                continue
            self._ended(call[0])
            self._make_room(1)
        return bool(calls)

    async def _flush(self, queue: _Queue, calls: list[_Call]) -> None:
        try:
            outcomes = await queue.send([item for _, item, _, _ in calls])
            if len(outcomes) != len(calls):
                raise BackendError(f"the store gave {len(outcomes)} answers to {len(calls)} calls")
        except Exception as error:  # noqa: BLE001  the callers, who await it, get it
            self._fail(calls, error)
        except asyncio.CancelledError:
            self._fail(calls, cancelled())
            raise
        except BaseException as error:
            if not self._loop.is_closed():  # Else nobody awaits the calls any more.
                self._fail(calls, interrupted(error))
            raise
        else:
            self._succeed(queue, calls, outcomes)

    def _succeed(self, queue: _Queue, calls: list[_Call], outcomes: Sequence[Any]) -> None:
        if self._closed:
            return
        turns = self._turns
        for (agent_id, _, future, _), outcome in zip(calls, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
            if turns[agent_id] is queue:
                del turns[agent_id]
            else:
                self._ended(agent_id)
        self._all_ended(calls)

    def _fail(self, calls: list[_Call], error: Exception) -> None:
        if self._closed:
            return
        for agent_id, _, future, _ in calls:
            if not future.done():
                future.set_exception(own(error))
            self._ended(agent_id)
        self._all_ended(calls)

    def _all_ended(self, calls: list[_Call]) -> None:
        ended = len(calls)
        calls.clear()
        self._make_room(ended)


class _Queue:
    """What a lane knows: how it sends, which calls wait to leave, how many workers flush them."""

    def __init__(self, send: Send[Any, Any], commutes: bool) -> None:
        self.send = send
        self.commutes = commutes
        self.calls: deque[_Call] = deque()
        self.workers = 0


@dataclass(slots=True, eq=False)
class _Turn:
    """Calls of one lane on one agent that are under way together, or will be."""

    queue: _Queue
    held: list[_Call] = field(default_factory=list)
    """Those that wait for the turn to begin."""
    unended: int = 1


def _cancel_once(worker: asyncio.Task[None]) -> None:
    """Cancel a worker, unless it has been: a second time would interrupt what the first has set off."""
    if not worker.cancelling():
        worker.cancel()


def own(error: Exception) -> Exception:
    """Return a caller's own instance of an error that several share; a traceback shared would grow with each raise.

    The error itself, where it cannot be copied: its class is made with other arguments than it keeps.
    """
    try:
        copied = copy(error)
    except Exception:  # noqa: BLE001  whatever its constructor makes of them
        return error
    copied.__cause__ = error.__cause__
    return copied.with_traceback(error.__traceback__)

"""Many awaiting callers, one write to the store.

Each kind of call has a lane. Calls that arrive while a lane's flushes are under way gather in its queue and leave
together as its next flush. There is no timer: a call that finds its lane idle leaves in the event loop's next turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

from agentic.errors import BackendError, BackendUnavailableError, RegistryClosedError, RegistryError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

BATCH_SIZE: Final = 256
"""How many calls one flush carries at most."""

MAX_PENDING: Final = 16_384
"""How many calls may be lined up or under way at once; further ones wait their turn outside, in order."""

WATCHES: Final = 20
"""How often within `timeout` calls are looked through for those whose time is over."""


Send = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]]
"""Sends items to the store in one go; returns one outcome for each, in order, or raises where all of it fails."""

Lane = Callable[[str, Item], Awaitable[Outcome]]
"""Sends one item for one agent, in whatever company; what it returns brings that item's outcome."""


def alone(send: Send[Item, Outcome]) -> Lane[Item, Outcome]:
    """Return a lane for a store that gains nothing by batches: each item goes by itself."""

    async def call(agent_id: str, item: Item) -> Outcome:
        await asyncio.sleep(0)  # A call that never waits would leave no room for cancellation, nor for other tasks.
        (outcome,) = await send([item])
        return outcome

    return call


class Coalescer:
    """Gathers single calls into flushes.

    - Calls on one agent take effect in the order they were issued: a call is held back until the agent's earlier ones
      have ended, but for those of its own lane that it commutes with.
    - A flush that fails fails its own calls alone, each with an exception of its own.
    - A cancelled caller harms no other; its call is dropped if it has not left yet.
    - A call ends within `timeout` seconds of being issued, or a twentieth more, waiting for room and for its turn
      included.

    Belongs to the event loop in which it is made.
    """

    def __init__(self, timeout: float, flushes_per_lane: int) -> None:
        self.timeout = timeout
        self._flushes_per_lane = flushes_per_lane
        self._loop = asyncio.get_running_loop()
        self._under_way: set[_Call] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._waiting: deque[_Call] = deque()
        self._queues: list[_Queue] = []
        self._last_turns: dict[str, _Call] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    def lane(self, send: Send[Item, Outcome], *, commutes: bool = False) -> Lane[Item, Outcome]:
        """Return a lane for one kind of call: a function that takes an agent's id and one item to send for it.

        Args:
            send: Sends one flush.
            commutes: Two of these calls on one agent may take effect in any order.
        """
        queue = _Queue(send, commutes)
        self._queues.append(queue)
        return partial(self._call, queue)

    async def drain(self) -> None:
        """Wait until every call has ended, at most `timeout` seconds; then fail the rest with `RegistryClosedError`."""
        end = self._loop.time() + self.timeout
        while self._workers and (left := end - self._loop.time()) > 0:
            await asyncio.wait(self._workers, timeout=left)
        self._closed = True
        for worker in self._workers:
            worker.cancel()
        if self._workers:
            await asyncio.wait(self._workers)
        while any(queue.calls for queue in self._queues):
            for queue in self._queues:
                self._fail(self._take(queue), _too_late())
        if self._watch is not None:
            self._watch.cancel()

    def _call(self, queue: _Queue, agent_id: str, item: Any) -> asyncio.Future[Any]:
        call = _Call(queue, agent_id, item, self._loop.create_future(), self._loop.time() + self.timeout)
        if len(self._under_way) < MAX_PENDING:
            self._line_up(call)
        else:
            self._waiting.append(call)
        if self._watch is None:
            self._watch = self._loop.call_later(self.timeout / WATCHES, self._fail_overdue)
        return call.future

    def _fail_overdue(self) -> None:
        """Fail each call whose time is over, wherever it is; those behind it go on when its flush has ended."""
        now = self._loop.time()
        for call in chain(self._under_way, self._waiting):
            if call.deadline <= now and not call.future.done():
                call.future.set_exception(self._no_answer())
        self._watch = None
        if self._under_way:
            self._watch = self._loop.call_later(self.timeout / WATCHES, self._fail_overdue)

    def _no_answer(self) -> BackendError:
        return BackendUnavailableError(f"the store did not answer within {self.timeout:g} s")

    # --- turns: the order of calls on one agent ---
    # A turn is the calls of one lane on one agent that may be under way together: several where they commute, else one.
    # The next turn begins when all of them have ended. The call that began a turn stands for it.

    def _line_up(self, call: _Call) -> None:
        self._under_way.add(call)
        last = self._last_turns.setdefault(call.agent_id, call)
        if last is call:
            self._enqueue(call)
        elif last.queue is call.queue and call.queue.commutes:
            last.unended += 1
            call.turn = last
            if last.held is None:
                self._enqueue(call)
            else:
                last.held.append(call)
        else:
            call.held = [call]
            last.next_turn = call
            self._last_turns[call.agent_id] = call

    def _ended(self, call: _Call) -> None:
        turn = call.turn or call
        turn.unended -= 1
        if not turn.unended:
            if turn.next_turn is None:
                del self._last_turns[turn.agent_id]
            else:
                self._begin(turn.next_turn)
        self._under_way.discard(call)
        if self._waiting:
            self._line_up(self._waiting.popleft())

    def _begin(self, turn: _Call) -> None:
        held, turn.held = turn.held, None
        for call in held or ():
            self._enqueue(call)

    # --- flushes ---

    def _enqueue(self, call: _Call) -> None:
        queue = call.queue
        queue.calls.append(call)
        if queue.flushes < self._flushes_per_lane and not self._closed:
            queue.flushes += 1
            worker = self._loop.create_task(self._flush_until_idle(queue))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _flush_until_idle(self, queue: _Queue) -> None:
        try:
            while calls := self._take(queue):
                await self._flush(queue, calls)
        finally:
            queue.flushes -= 1

    def _take(self, queue: _Queue) -> list[_Call]:
        calls: list[_Call] = []
        while queue.calls and len(calls) < BATCH_SIZE:
            call = queue.calls.popleft()
            if call.future.done():
                self._ended(call)
            else:
                calls.append(call)
        return calls

    async def _flush(self, queue: _Queue, calls: list[_Call]) -> None:
        try:
            async with asyncio.timeout_at(max(call.deadline for call in calls)):
                outcomes = await queue.send([call.item for call in calls])
            if len(outcomes) != len(calls):
                raise BackendError(f"the store gave {len(outcomes)} answers to {len(calls)} calls")
        except asyncio.CancelledError:
            self._fail(calls, _too_late())
            raise
        except TimeoutError as cause:
            error = self._no_answer()
            error.__cause__ = cause
            self._fail(calls, error)
        except Exception as error:  # noqa: BLE001  it is the callers', who await it
            self._fail(calls, error)
        else:
            for call, outcome in zip(calls, outcomes, strict=True):
                if not call.future.done():
                    call.future.set_result(outcome)
                self._ended(call)

    def _fail(self, calls: list[_Call], error: Exception) -> None:
        for call in calls:
            if not call.future.done():
                call.future.set_exception(own(error))
            self._ended(call)


class _Queue:
    """What a lane knows: how it sends, which calls wait to leave, how many flushes are under way."""

    def __init__(self, send: Send[Any, Any], commutes: bool) -> None:
        self.send = send
        self.commutes = commutes
        self.calls: deque[_Call] = deque()
        self.flushes = 0


class _Call(msgspec.Struct, eq=False):
    """One item on its way; for the call that began a turn, that turn as well."""

    queue: _Queue
    agent_id: str
    item: Any
    future: asyncio.Future[Any]
    deadline: float
    turn: _Call | None = None
    """The call that began the turn; None for that call itself."""
    unended: int = 1
    """Of the turn: its calls that have not ended."""
    held: list[_Call] | None = None
    """Of the turn: its calls, while an earlier turn is under way."""
    next_turn: _Call | None = None


def own(error: Exception) -> Exception:
    """Return a caller's own instance of an error that several share; a traceback shared would grow with each raise."""
    if not isinstance(error, RegistryError):
        return error
    own = type(error)(*error.args)
    own.__cause__ = error.__cause__
    return own


def _too_late() -> RegistryClosedError:
    return RegistryClosedError("the registry was closed before the store answered")

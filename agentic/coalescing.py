"""Many awaiting callers, one write to the store.

Each kind of call has a lane. Calls that arrive while a lane's flushes are under way gather in its queue and leave
together as its next flush. There is no timer: a call that finds its lane idle leaves in the event loop's next turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from agentic.errors import BackendError, RegistryClosedError, RegistryError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

BATCH_SIZE: Final = 512
"""How many calls one flush carries at most."""

MAX_PENDING: Final = 16_384
"""How many calls may be queued or under way at once; further callers wait for room."""


Send = Callable[[Sequence[Item]], Awaitable[Sequence[Outcome]]]
"""Sends items to the store in one go; returns one outcome for each, in order, or raises where all of it fails."""


def alone(send: Send[Item, Outcome]) -> Callable[[str, Item], Awaitable[Outcome]]:
    """Return what a `Lane` is to its callers, for a store that gains nothing by batches: each item goes by itself."""

    async def call(agent_id: str, item: Item) -> Outcome:
        (outcome,) = await send([item])
        return outcome

    return call


class Coalescer:
    """Gathers single calls into flushes.

    - Calls on one agent take effect in the order they were issued: a call is held back until the agent's earlier ones
      have ended, but for those of its own lane that it commutes with.
    - A flush that fails fails its own calls alone, each with an exception of its own.
    - A cancelled caller harms no other; its call is dropped if it has not left yet.
    - A call ends within `timeout` seconds of being issued, waiting for room and for its turn included.

    Belongs to the event loop in which it is made.
    """

    def __init__(self, timeout: float, flushes_per_lane: int) -> None:
        self.timeout = timeout
        self._flushes_per_lane = flushes_per_lane
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(MAX_PENDING)
        self._lanes: list[Lane[Any, Any]] = []
        self._last_turns: dict[str, _Turn] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    def lane(self, send: Send[Item, Outcome], *, commutes: bool = False) -> Lane[Item, Outcome]:
        """Return a lane for one kind of call.

        Args:
            send: Sends one flush.
            commutes: Two of these calls on one agent may take effect in any order.
        """
        lane = Lane(self, send, commutes)
        self._lanes.append(lane)
        return lane

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
        while any(lane.queue for lane in self._lanes):
            for lane in self._lanes:
                self._fail(self._take(lane), _too_late())

    async def call(self, lane: Lane[Any, Any], agent_id: str, item: Any) -> Any:
        """Send one item for one agent and return its outcome."""
        deadline = self._loop.time() + self.timeout
        if self._room.locked():
            await self._wait_for_room(deadline)
        else:
            await self._room.acquire()
        call = _Call(agent_id, item, self._loop.create_future(), deadline)
        self._line_up(lane, call)
        return await call.future

    async def _wait_for_room(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._room.acquire()
        except TimeoutError as error:
            raise BackendError(f"{MAX_PENDING} calls before this one did not end within {self.timeout:g} s") from error
        if self._closed:
            self._room.release()
            raise _too_late()

    # --- turns: the order of calls on one agent ---

    def _line_up(self, lane: Lane[Any, Any], call: _Call) -> None:
        last = self._last_turns.get(call.agent_id)
        if last is not None and last.lane is lane and lane.commutes:
            last.unended += 1
            call.turn = last
            if last.held is None:
                self._enqueue(lane, call)
            else:
                last.held.append(call)
            return
        call.turn = turn = _Turn(lane)
        self._last_turns[call.agent_id] = turn
        if last is None:
            self._enqueue(lane, call)
        else:
            turn.held = [call]
            last.next = turn

    def _ended(self, call: _Call) -> None:
        self._room.release()
        turn = call.turn
        turn.unended -= 1
        if turn.unended:
            return
        following = turn.next
        if following is None:
            del self._last_turns[call.agent_id]
            return
        held, following.held = following.held, None
        for each in held or ():
            self._enqueue(following.lane, each)

    # --- flushes ---

    def _enqueue(self, lane: Lane[Any, Any], call: _Call) -> None:
        lane.queue.append(call)
        if lane.flushes < self._flushes_per_lane and not self._closed:
            lane.flushes += 1
            worker = self._loop.create_task(self._flush_until_idle(lane))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _flush_until_idle(self, lane: Lane[Any, Any]) -> None:
        try:
            while calls := self._take(lane):
                await self._flush(lane, calls)
        finally:
            lane.flushes -= 1

    def _take(self, lane: Lane[Any, Any]) -> list[_Call]:
        calls: list[_Call] = []
        while lane.queue and len(calls) < BATCH_SIZE:
            call = lane.queue.popleft()
            if call.future.done():
                self._ended(call)
            else:
                calls.append(call)
        return calls

    async def _flush(self, lane: Lane[Any, Any], calls: list[_Call]) -> None:
        try:
            async with asyncio.timeout_at(calls[0].deadline):
                outcomes = await lane.send([call.item for call in calls])
            if len(outcomes) != len(calls):
                raise BackendError(f"the store gave {len(outcomes)} answers to {len(calls)} calls")
        except asyncio.CancelledError:
            self._fail(calls, _too_late())
            raise
        except TimeoutError as cause:
            error = BackendError(f"the store did not answer within {self.timeout:g} s")
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
                call.future.set_exception(_own(error))
            self._ended(call)


class Lane(Generic[Item, Outcome]):
    """One kind of call; made by `Coalescer.lane`."""

    def __init__(self, coalescer: Coalescer, send: Send[Item, Outcome], commutes: bool) -> None:
        self._coalescer = coalescer
        self.send = send
        self.commutes = commutes
        self.queue: deque[_Call] = deque()
        self.flushes = 0

    def __call__(self, agent_id: str, item: Item) -> Awaitable[Outcome]:
        """Send one item for one agent, in whatever company, and return that item's outcome."""
        return self._coalescer.call(self, agent_id, item)


class _Turn:
    """Calls of one lane on one agent that may be under way together; the next turn begins when all have ended."""

    __slots__ = ("held", "lane", "next", "unended")

    def __init__(self, lane: Lane[Any, Any]) -> None:
        self.lane = lane
        self.unended = 1
        self.held: list[_Call] | None = None
        self.next: _Turn | None = None


class _Call:
    __slots__ = ("agent_id", "deadline", "future", "item", "turn")

    def __init__(self, agent_id: str, item: Any, future: asyncio.Future[Any], deadline: float) -> None:
        self.agent_id = agent_id
        self.item = item
        self.future = future
        self.deadline = deadline
        self.turn: _Turn


def _own(error: Exception) -> Exception:
    """Return a caller's own instance of an error that several share; a traceback shared would grow with each raise."""
    if not isinstance(error, RegistryError):
        return error
    own = type(error)(*error.args)
    own.__cause__ = error.__cause__
    return own


def _too_late() -> RegistryClosedError:
    return RegistryClosedError("the registry was closed before the store answered")

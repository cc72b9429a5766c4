"""Batches of many callers: order, isolation, back-pressure, closing and cancellation."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic import AgentInfo, AgentNotFoundError, AgentRegistry, BackendError, RegistryClosedError
from agentic.dispatch import batcher as module
from agentic.dispatch.batcher import BATCH_SIZE, Batcher, Lane
from agentic.testing import StoreUnderTest, wait_until


class Ledger:
    """A store that records what takes effect. Its batches can be blocked, or fail completely or for some items."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Any]]] = []
        self.effects: list[tuple[str, Any]] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None
        self.refused: set[Any] = set()

    def sender(self, name: str) -> Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]:
        async def send(items: Sequence[Any]) -> Sequence[Any]:
            self.batches.append((name, list(items)))
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            try:
                await (self.gate.wait() if self.gate else asyncio.sleep(0))
            finally:
                self.in_flight -= 1
            if self.error:
                raise self.error
            self.effects += [(name, item) for item in items]
            return [AgentNotFoundError(str(item)) if item in self.refused else ("answer", name, item) for item in items]

        return send


def lanes(ledger: Ledger, max_batches: int = 1, timeout: float = 20) -> tuple[Batcher, Lane[Any, Any], Lane[Any, Any]]:
    """Return a batcher, a lane whose calls commute, and one whose calls do not."""
    batcher = Batcher(timeout, max_batches)
    return batcher, batcher.lane(ledger.sender("touch"), commutes=True), batcher.lane(ledger.sender("write"))


async def settle() -> None:
    """Run every task that is ready."""
    for _ in range(20):
        await asyncio.sleep(0)


def other_tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks of the batcher; its callers await futures."""
    return asyncio.all_tasks() - {asyncio.current_task()}


def started(calls: list[Awaitable[Any]]) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(call) for call in calls]


async def test_a_lone_call_is_sent_immediately_as_a_batch_of_one() -> None:
    ledger = Ledger()
    _, touch, _ = lanes(ledger)
    assert await touch("a", 1) == ("answer", "touch", 1)
    assert ledger.batches == [("touch", [1])]


async def test_calls_made_together_form_one_batch_and_get_their_own_outcomes() -> None:
    ledger = Ledger()
    _, touch, _ = lanes(ledger)
    answers = await asyncio.gather(*(touch(f"agent-{n}", n) for n in range(200)))
    assert answers == [("answer", "touch", n) for n in range(200)]
    assert [len(items) for _, items in ledger.batches] == [200]


async def test_calls_that_arrive_during_a_batch_form_the_next_batches() -> None:
    ledger = Ledger()
    _, touch, _ = lanes(ledger)
    ledger.gate = asyncio.Event()
    calls = started([touch("first", -1)])
    await settle()
    calls += started([touch(f"agent-{n}", n) for n in range(BATCH_SIZE + 10)])
    await settle()
    assert len(ledger.batches) == 1
    ledger.gate.set()
    await asyncio.gather(*calls)
    assert [len(items) for _, items in ledger.batches] == [1, BATCH_SIZE, 10]


@pytest.mark.parametrize("max_batches", [1, 2, 3])
async def test_the_number_of_batches_in_flight_is_limited(max_batches: int) -> None:
    ledger = Ledger()
    _, touch, _ = lanes(ledger, max_batches)
    for _ in range(4):
        ledger.gate = asyncio.Event()
        calls: list[asyncio.Task[Any]] = []
        for n in range(6):
            calls += started([touch(f"agent-{n}", n)])
            await settle()
        assert ledger.in_flight == max_batches
        ledger.gate.set()
        await asyncio.gather(*calls)
    assert ledger.max_in_flight == max_batches


async def test_a_call_waits_for_earlier_calls_on_its_agent_and_for_no_others() -> None:
    ledger = Ledger()
    _, touch, write = lanes(ledger, max_batches=3)
    ledger.gate = asyncio.Event()
    calls = started([touch("a", 1), touch("a", 2), write("a", 3), touch("a", 4), write("b", 5)])
    await settle()
    assert sorted(ledger.batches) == [("touch", [1, 2]), ("write", [5])]
    ledger.gate.set()
    await asyncio.gather(*calls)
    assert [item for _, item in ledger.effects if item != 5] == [1, 2, 3, 4]


async def test_calls_on_one_agent_that_do_not_commute_are_never_in_one_batch() -> None:
    ledger = Ledger()
    _, _, write = lanes(ledger, max_batches=3)
    await asyncio.gather(*(write("a", n) for n in range(5)))
    assert ledger.batches == [("write", [n]) for n in range(5)]


# --- failure ---


@pytest.mark.parametrize("error_class", [BackendError, ZeroDivisionError])
async def test_a_failed_batch_fails_only_its_own_calls_each_with_its_own_error(
    error_class: type[Exception],
) -> None:
    ledger = Ledger()
    _, touch, _ = lanes(ledger)
    cause = OSError("cable")
    ledger.error = error_class("down")
    ledger.error.__cause__ = cause
    errors = await asyncio.gather(*(touch(f"agent-{n}", n) for n in range(3)), return_exceptions=True)
    assert [str(error) for error in errors] == ["down"] * 3
    assert all(isinstance(error, error_class) and error.__cause__ is cause for error in errors)
    assert len({id(error) for error in errors}) == 3
    ledger.error = None
    assert await touch("agent-0", 7) == ("answer", "touch", 7)


async def test_an_error_of_one_agent_reaches_only_its_own_caller() -> None:
    ledger = Ledger()
    ledger.refused = {1}
    _, touch, _ = lanes(ledger)
    answers = await asyncio.gather(*(touch(f"agent-{n}", n) for n in range(3)))
    assert [type(answer).__name__ for answer in answers] == ["tuple", "AgentNotFoundError", "tuple"]


async def test_a_batch_that_hangs_ends_at_the_deadline_of_its_calls() -> None:
    ledger = Ledger()
    _, touch, write = lanes(ledger, timeout=0.05)
    ledger.gate = asyncio.Event()
    calls = [touch("a", 1), write("a", 2), touch("b", 3), write("b", 4)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(error) for error in errors} == {"the store did not answer within 0.05 s"}
    assert all(isinstance(error, BackendError) for error in errors)
    ledger.gate = None
    assert await touch("a", 5) == ("answer", "touch", 5)


async def test_a_wrong_number_of_outcomes_fails_the_whole_batch() -> None:
    async def send(items: Sequence[int]) -> Sequence[int]:
        return items[:-1]

    batcher = Batcher(20, 1)
    lane = batcher.lane(send)
    errors = await asyncio.gather(lane("a", 1), lane("b", 2), return_exceptions=True)
    assert all(isinstance(error, BackendError) for error in errors)
    await batcher.close()


# --- back-pressure ---


async def test_callers_wait_for_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 5)
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    batcher, touch, _ = lanes(ledger)
    calls = started([touch(f"agent-{n}", n) for n in range(12)])
    await settle()
    assert batcher.pending == 5
    ledger.gate.set()
    assert await asyncio.gather(*calls) == [("answer", "touch", n) for n in range(12)]
    assert [item for _, item in ledger.effects] == list(range(12))


async def test_waiting_for_capacity_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    _, touch, _ = lanes(ledger, timeout=0.05)
    errors = await asyncio.gather(*(touch(f"agent-{n}", n) for n in range(4)), return_exceptions=True)
    assert all(isinstance(error, BackendError) for error in errors)
    ledger.gate = None
    assert await touch("a", 1) == ("answer", "touch", 1)


# --- cancellation ---


async def test_a_call_cancelled_before_it_is_sent_is_dropped() -> None:
    ledger = Ledger()
    _, touch, write = lanes(ledger)
    ledger.gate = asyncio.Event()
    calls = started([write("x", 0)])
    await settle()
    calls += started([write("a", 1), touch("a", 2), write("b", 3)])
    await settle()
    calls[1].cancel()
    await settle()
    ledger.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert sorted(item for _, item in ledger.effects) == [0, 2, 3]


async def test_a_call_cancelled_in_flight_does_not_affect_others() -> None:
    ledger = Ledger()
    batcher, touch, _ = lanes(ledger)
    ledger.gate = asyncio.Event()
    calls = started([touch(f"agent-{n}", n) for n in range(3)])
    await settle()
    calls[1].cancel()
    ledger.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert (answers[0], answers[2]) == (("answer", "touch", 0), ("answer", "touch", 2))
    assert not batcher.order


# --- closing ---


async def test_close_waits_for_calls_already_issued() -> None:
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    batcher, touch, write = lanes(ledger)
    calls = started([touch("a", 1), write("a", 2), touch("a", 3), write("b", 4)])
    await settle()
    closing = asyncio.create_task(batcher.close())
    await settle()
    assert not closing.done()
    ledger.gate.set()
    await closing
    assert [call.result()[2] for call in calls] == [1, 2, 3, 4]


async def test_close_fails_calls_that_do_not_end_in_time() -> None:
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    batcher, touch, write = lanes(ledger, timeout=20)
    calls = started([touch("a", 1), write("a", 2), touch("b", 3), write("c", 4)])
    await settle()
    batcher.timeout = 0.02
    await batcher.close()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, RegistryClosedError) for error in errors)
    assert not batcher.order
    assert not ledger.in_flight


async def test_closing_a_registry_waits_for_calls_already_issued(store: StoreUnderTest) -> None:
    async with store.make() as registry:
        calls = started([registry.register(AgentInfo(f"agent-{n}")) for n in range(2000)])
        await asyncio.sleep(0)
    await asyncio.gather(*calls)
    async with store.make() as registry:
        assert len(await registry.list()) in (2000, 0)  # a memory registry loses its agents when it closes


# --- the promises under random faults ---

agent_ids = st.sampled_from("abc")
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["touch", "write"]), agent_ids),
        st.tuples(st.just("cancel"), st.integers(0, 60)),
        st.tuples(st.sampled_from(["block", "release", "fail", "recover", "iterate", "refuse"]), st.integers(0, 3)),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(steps=steps, max_batches=st.integers(1, 3))
async def test_every_call_keeps_the_promises_under_random_faults_and_cancellations(
    steps: list[tuple[str, Any]], max_batches: int
) -> None:
    ledger = Ledger()
    batcher, touch, write = lanes(ledger, max_batches)
    by_name = {"touch": touch, "write": write}
    issued: list[tuple[str, str]] = []
    calls: list[asyncio.Task[Any]] = []
    for step, value in steps:
        if step in by_name:
            issued.append((step, value))
            calls.append(asyncio.ensure_future(by_name[step](value, len(calls))))
        elif step == "cancel":
            if value < len(calls):
                calls[value].cancel()
        elif step == "block":
            ledger.gate = ledger.gate or asyncio.Event()
        elif step == "release":
            if ledger.gate:
                ledger.gate.set()
            ledger.gate = None
        elif step == "refuse":
            ledger.refused.add(len(calls))
        elif step in ("fail", "recover"):
            ledger.error = BackendError("down") if step == "fail" else None
        for _ in range(value if step == "iterate" else 1):
            await asyncio.sleep(0)
    if ledger.gate:
        ledger.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for number, answer in enumerate(answers):  # each got its own answer or an error, or was cancelled
        if isinstance(answer, tuple):
            assert answer == ("answer", issued[number][0], number)
        elif isinstance(answer, AgentNotFoundError):
            assert number in ledger.refused
        else:
            assert isinstance(answer, (BackendError, asyncio.CancelledError))
    took_effect = [item for _, item in ledger.effects]
    assert len(took_effect) == len(set(took_effect))  # nothing twice
    assert {n for n, answer in enumerate(answers) if isinstance(answer, (tuple, AgentNotFoundError))} <= set(
        took_effect
    )
    for agent_id in "abc":  # in the order of issue, except calls that commute
        order = [item for item in took_effect if issued[item][1] == agent_id]
        for before, after in pairwise(order):
            assert before < after or issued[before][0] == issued[after][0] == "touch"
    await settle()
    assert not ledger.in_flight
    assert not batcher.order
    assert batcher.pending == 0
    assert ledger.max_in_flight <= 2 * max_batches


async def test_ten_thousand_calls_with_random_cancellation(store: StoreUnderTest) -> None:
    store.connections()  # opens the test's own connections
    before = store.connections()

    def more_than_before(allowed: int) -> bool:
        return any(now > then + allowed for now, then in zip(store.connections(), before, strict=True))

    async with store.make() as registry:
        await make_random_calls(registry)
        assert not more_than_before(getattr(registry, "max_connections", 0))
    await wait_until(lambda: not more_than_before(0), "every connection is closed")


async def make_random_calls(registry: AgentRegistry) -> None:
    chance = random.Random(1)
    ids = [f"agent-{n}" for n in range(200)]
    await asyncio.gather(*(registry.register(AgentInfo(i, name=i)) for i in ids))

    async def make_call(agent_id: str, kind: int) -> None:
        if kind == 0:
            assert (await registry.get(agent_id)).name == agent_id
        elif kind == 1:
            await registry.heartbeat(agent_id)
        elif kind == 2:
            assert (await registry.update(agent_id, current_load=1)).id == agent_id
        elif kind == 3:
            assert (await registry.register(AgentInfo(agent_id, name=agent_id))).name == agent_id
        else:
            with pytest.raises(AgentNotFoundError, match=f"no-{agent_id}$"):
                await registry.heartbeat(f"no-{agent_id}")

    for _ in range(20):
        calls = [asyncio.create_task(make_call(chance.choice(ids), chance.randrange(5))) for _ in range(500)]
        for call in chance.sample(calls, 200):
            if chance.random() < 0.2:
                await asyncio.sleep(0)
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        assert sum(result is None for result in results) >= 300
    assert sorted(agent.id for agent in await registry.list()) == sorted(ids)


async def test_a_batch_that_hangs_is_cancelled_when_all_its_calls_are_overdue() -> None:
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    _, touch, _ = lanes(ledger, timeout=2)
    began_at = time.monotonic()
    first = started([touch("a", 1)])
    await asyncio.sleep(1)
    blocked = started([touch("b", 2)])  # blocked by the first batch
    with pytest.raises(BackendError, match="did not answer"):
        await first[0]
    assert time.monotonic() - began_at >= 2
    await wait_until(lambda: len(ledger.batches) == 2, "the next batch has left")
    assert [items for _, items in ledger.batches] == [[1], [2]]
    ledger.gate.set()
    assert await blocked[0] == ("answer", "touch", 2)


async def test_a_batch_whose_callers_were_cancelled_is_cancelled_at_its_deadline() -> None:
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    _, touch, _ = lanes(ledger, timeout=0.2)
    left = started([touch("a", 1)])
    await settle()
    left[0].cancel()
    await settle()
    assert ledger.in_flight == 1
    await wait_until(lambda: not ledger.in_flight, "the batch is cancelled", within=10)


async def test_calls_after_close_are_refused() -> None:
    ledger = Ledger()
    batcher, touch, write = lanes(ledger)
    await touch("a", 1)
    await batcher.close()
    for lane in (touch, write):
        with pytest.raises(RegistryClosedError):
            await lane("a", 2)


async def test_close_fails_every_call_although_a_batch_ignores_its_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 4)
    released = asyncio.Event()

    async def ignore_cancellation(items: Sequence[int]) -> Sequence[int]:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        return items

    batcher = Batcher(0.1, 1)
    lane = batcher.lane(ignore_cancellation)
    calls = started([lane("a", 1)])
    await settle()
    calls += started([lane(agent_id, 2) for agent_id in "aabcd"])  # blocked, queued, and waiting for capacity
    await settle()
    batcher.timeout = 20  # So that the deadlines do not end them.
    closing = asyncio.create_task(batcher.close())
    await settle()
    closing.cancel()
    await asyncio.wait([closing])
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {RegistryClosedError}
    released.set()
    await wait_until(lambda: not other_tasks(), "the batch has ended")
    assert not batcher.order


async def test_a_cancelled_worker_fails_its_own_calls_and_the_lane_keeps_working() -> None:
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    batcher, touch, _ = lanes(ledger)
    in_flight = started([touch("a", 1)])
    await settle()
    blocked = started([touch("b", 2)])
    await settle()
    (worker,) = other_tasks()
    worker.cancel()
    await settle()
    ledger.gate.set()
    with pytest.raises(BackendError, match="was cancelled"):
        await in_flight[0]
    assert await blocked[0] == ("answer", "touch", 2)
    not_started = started([touch("c", 3)])
    (worker,) = other_tasks()
    worker.cancel()  # before its first step
    assert await not_started[0] == ("answer", "touch", 3)
    assert batcher.pending == 0


async def test_an_error_that_cannot_be_copied_still_reaches_every_caller() -> None:
    class Peculiar(BackendError):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one + two)

    ledger = Ledger()
    ledger.error = Peculiar("d", "own")
    _, touch, _ = lanes(ledger)
    errors = await asyncio.gather(touch("a", 1), touch("b", 2), return_exceptions=True)
    assert [str(error) for error in errors] == ["down", "down"]


async def test_each_call_has_its_own_deadline() -> None:
    ledger = Ledger()
    ledger.gate = asyncio.Event()
    _, touch, _ = lanes(ledger, timeout=0.2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    first = asyncio.ensure_future(touch("a", 1))
    await settle()
    queued = [asyncio.ensure_future(touch(f"b{n}", n)) for n in range(3)]
    with pytest.raises(BackendError, match="did not answer"):
        await asyncio.gather(first)
    assert loop.time() - began < 1
    fresh = asyncio.ensure_future(touch("c", 9))
    await asyncio.wait(queued)
    assert not fresh.done()  # its deadline is later
    ledger.gate.set()
    assert await fresh == ("answer", "touch", 9)
    assert all(isinstance(call.exception(), BackendError) for call in queued)

"""Which calls on one agent may run concurrently, compared with a model."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import takewhile

from hypothesis import given
from hypothesis import strategies as st

from agentic.dispatch.ordering import Call, Ordering


@dataclass(eq=False)
class Kind:
    commutes: bool


READ, WRITE, SEND = Kind(commutes=True), Kind(commutes=False), Kind(commutes=True)

steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([READ, WRITE, SEND]), st.sampled_from("ab")),
        st.sets(st.integers(0, 5), min_size=1),
    ),
    max_size=60,
)


def may_run(calls: list[Call]) -> list[Call]:
    """Return the calls on one agent that may run, in the order in which they entered."""
    first = calls[:1]
    if first and first[0][0].commutes:
        return list(takewhile(lambda call: call[0] is first[0][0], calls))
    return first


@given(steps=steps)
def test_a_call_starts_when_all_earlier_calls_have_left_or_commute(steps: list[tuple[Kind, str] | set[int]]) -> None:
    order = Ordering()
    entered: defaultdict[str, list[Call]] = defaultdict(list)
    started: list[Call] = []
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            call: Call = (*step, number, None, 0.0)
            entered[call[1]].append(call)
            if order.enter(call):
                started.append(call)
        else:
            leaving = [call for at, call in enumerate(started) if at in step]
            for call in leaving:
                started.remove(call)
                entered[call[1]].remove(call)
            unblocked = order.leave(leaving)
            assert [call for call in unblocked if call[1] == "a"] == sorted(
                (call for call in unblocked if call[1] == "a"), key=lambda call: int(call[2])
            )
            started += unblocked
        running = [call for calls in entered.values() for call in may_run(calls)]
        assert sorted(call[2] for call in started) == sorted(call[2] for call in running)
        blocked = [call for calls in entered.values() for call in calls if call not in running]
        assert sorted(call[2] for call in order.blocked()) == sorted(call[2] for call in blocked)
        assert bool(order) == any(entered.values())
    while started:
        started = order.leave(started)
    assert not order


def test_clear_removes_every_call() -> None:
    order = Ordering()
    assert order.enter((WRITE, "a", 1, None, 0.0))
    assert not order.enter((WRITE, "a", 2, None, 0.0))
    order.clear()
    assert not order
    assert list(order.blocked()) == []
    assert order.enter((WRITE, "a", 3, None, 0.0))

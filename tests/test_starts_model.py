"""Every course of events with up to three starts of one agent ends with one session that is healthy: the latest one.

A small model, explored exhaustively: what the store decides comes from `incarnations.admitted`, what a session does next is
written down here, and `test_session.py` shows that real sessions do it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import permutations
from typing import NamedTuple

from agentic import AgentReplacedError
from agentic.incarnations import LOWEST, admitted

STARTS = 3
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ABSENT, UNNUMBERED = -1, 0
"""What is stored, beside the number of a start from 1: no record, or one that a program of the Go original has written."""


class World(NamedTuple):
    """The record, and what each start believes: `new` has not registered, `alive`, `replaced`, or `left`."""

    stored: int
    sessions: tuple[str, ...]

    def after(self, start: int, belief: str, stored: int) -> World:
        sessions = list(self.sessions)
        sessions[start - 1] = belief
        return World(stored, tuple(sessions))


def verdict(start: int, stored: int) -> str:
    """Return what the store answers to a call of a start."""
    if stored == ABSENT:
        return "absent"
    found = admitted("a", LOWEST + start, LOWEST + stored if stored else 0, NOW)
    if isinstance(found, AgentReplacedError):
        return "replaced"
    return "absent" if found is False else "rewritten" if stored == UNNUMBERED else "done"


def beat(world: World, start: int) -> World:
    """A session sends a heartbeat, and does what follows from the answer."""
    answer = verdict(start, world.stored)
    if answer == "replaced":
        return world.after(start, "replaced", world.stored)
    # Absent: it registers again as the same start. Rewritten: it writes its fields and its number.
    return world if answer == "done" else world._replace(stored=start)


def leave(world: World, start: int) -> World:
    """A session ends, and deregisters its agent."""
    gone = verdict(start, world.stored) in ("done", "rewritten")
    return world.after(start, "left", ABSENT if gone else world.stored)


def events(world: World) -> Iterator[World]:
    """Yield the world after each thing that may happen next."""
    new = [start for start, belief in enumerate(world.sessions, 1) if belief == "new"]
    if new:
        yield world.after(new[0], "alive", new[0])  # It registers without an incarnation, and gets a higher one.
    for start, belief in enumerate(world.sessions, 1):
        if belief == "alive":
            yield beat(world, start)
            yield leave(world, start)
            yield world.after(start, "left", world.stored)  # It is killed.
    yield world._replace(stored=ABSENT)  # An operator deregisters it, it expires, or the store loses its data.
    if world.stored != ABSENT:
        yield world._replace(stored=UNNUMBERED)  # A Go program rewrites it. Its late heartbeats create nothing.


def reachable() -> set[World]:
    found = {World(ABSENT, ("new",) * STARTS)}
    todo = list(found)
    while todo:
        for world in events(todo.pop()):
            if world not in found:
                found.add(world)
                todo.append(world)
    return found


def test_two_heartbeats_of_each_session_leave_the_latest_one_healthy() -> None:
    worlds = reachable()
    assert len(worlds) > 100
    for world in worlds:
        alive = [start for start, belief in enumerate(world.sessions, 1) if belief == "alive"]
        for order in permutations(alive):
            for again in permutations(alive):
                end = world
                for start in (*order, *again):
                    if end.sessions[start - 1] == "alive":
                        end = beat(end, start)
                left = [start for start in alive if end.sessions[start - 1] == "alive"]
                if not alive:
                    continue
                # Exactly one, unless a later start that nobody has heard of since is still stored.
                if world.stored > max(alive):
                    assert end.stored == world.stored
                    assert left == []
                else:
                    assert left == [max(alive)], (world, order, again)
                    assert end.stored == max(alive)
                for start in left:
                    assert beat(end, start) == end  # Nothing changes any more.


def test_no_session_is_told_that_it_was_replaced_while_it_is_the_latest() -> None:
    for world in reachable():
        replaced = [start for start, belief in enumerate(world.sessions, 1) if belief == "replaced"]
        started = [start for start, belief in enumerate(world.sessions, 1) if belief != "new"]
        assert all(any(later > start for later in started) for start in replaced)

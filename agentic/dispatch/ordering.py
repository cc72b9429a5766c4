"""Decide which calls on one agent may be under way together. Pure state: no clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

Call = tuple["Kind", str, Any, Any, float]
"""A call: its kind, its agent's id, and what only the caller of this module reads."""


class Kind(Protocol):
    """A kind of call.

    Attributes:
        commutes: Two calls of this kind on one agent may take effect in any order, so they may be under way together.
    """

    commutes: bool


class Ordering:
    """Keeps the calls on each agent in the order in which they enter.

    The calls on an agent form turns. A turn is one call, or consecutive calls of one kind that commute. The calls of a
    turn may be under way together; the next turn starts when all of them have left. Agents do not affect each other.
    """

    def __init__(self) -> None:
        # Most agents have one call, if any: its kind then stands for the agent's only turn.
        self._turns: dict[str, Kind | deque[_Turn]] = {}

    def __bool__(self) -> bool:
        """Return whether any call has entered and not left."""
        return bool(self._turns)

    def enter(self, call: Call) -> bool:
        """Add a call; return whether it may start now."""
        kind, agent_id, *_ = call
        turns = self._turns.get(agent_id)
        if turns is None:
            self._turns[agent_id] = kind
            return True
        if not isinstance(turns, deque):
            turns = self._turns[agent_id] = deque([_Turn(turns)])
        last = turns[-1]
        if last.kind is not kind or not kind.commutes:
            turns.append(_Turn(kind, [call]))
            return False
        last.unfinished += 1
        if last is turns[0]:
            return True
        last.blocked.append(call)
        return False

    def leave(self, calls: Iterable[Call]) -> list[Call]:
        """Remove calls that have ended, of which each had started; return those that may start now."""
        turns = self._turns
        unblocked: list[Call] = []
        for kind, agent_id, *_ in calls:
            if turns[agent_id] is kind:
                del turns[agent_id]
            else:
                unblocked += self._leave_turn(agent_id)
        return unblocked

    def _leave_turn(self, agent_id: str) -> list[Call]:
        turns = cast("deque[_Turn]", self._turns[agent_id])
        first = turns[0]
        first.unfinished -= 1
        if first.unfinished:
            return []
        turns.popleft()
        if not turns:
            del self._turns[agent_id]
            return []
        started, turns[0].blocked = turns[0].blocked, []
        return started

    def blocked(self) -> Iterator[Call]:
        """Return the calls that may not start yet."""
        for turns in self._turns.values():
            if isinstance(turns, deque):
                for turn in turns:
                    yield from turn.blocked

    def clear(self) -> None:
        """Remove every call."""
        self._turns.clear()


@dataclass(slots=True, eq=False)
class _Turn:
    """Calls that may be under way together, or will be; `unfinished` counts them, blocked ones included."""

    kind: Kind
    blocked: list[Call] = field(default_factory=list)
    unfinished: int = 1

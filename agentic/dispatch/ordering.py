"""Decide which calls on one agent may run concurrently. Pure state: no clock, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

Call = tuple["Kind", str, Any, Any, float]
"""A call: its kind, its agent's id, and three items that this module does not read."""


class Kind(Protocol):
    """A kind of call.

    Attributes:
        commutes: Whether calls of this kind on one agent may take effect in any order, and so run concurrently.
    """

    commutes: bool


class Ordering:
    """Keeps the calls on each agent in the order in which they enter.

    The calls on an agent form groups. A group is one call, or consecutive calls of one kind that commute. The calls of
    a group may run concurrently; the next group starts when all of them have left. Agents do not affect each other.
    """

    def __init__(self) -> None:
        # Most agents have at most one call. Its kind then represents the agent's only group.
        self._groups: dict[str, Kind | deque[_Group]] = {}

    def __bool__(self) -> bool:
        """Return whether there are calls that have not left."""
        return bool(self._groups)

    def enter(self, call: Call) -> bool:
        """Add a call. Return whether it may start now."""
        agent_id = call[1]
        if agent_id not in self._groups:
            self._groups[agent_id] = call[0]
            return True
        return self._join(call)

    def _join(self, call: Call) -> bool:
        """Add a call on an agent that has calls."""
        kind, agent_id, *_ = call
        groups = self._groups[agent_id]
        if not isinstance(groups, deque):
            groups = self._groups[agent_id] = deque([_Group(groups)])
        last = groups[-1]
        if last.kind is not kind or not kind.commutes:
            groups.append(_Group(kind, [call]))
            return False
        last.unfinished += 1
        if last is groups[0]:
            return True
        last.blocked.append(call)
        return False

    def leave(self, calls: Iterable[Call]) -> list[Call]:
        """Remove calls that have ended; each must have started. Return the calls that may start now."""
        groups = self._groups
        unblocked: list[Call] = []
        for call in calls:
            agent_id = call[1]
            if groups[agent_id] is call[0]:
                del groups[agent_id]
            else:
                unblocked += self._leave_group(agent_id)
        return unblocked

    def _leave_group(self, agent_id: str) -> list[Call]:
        groups = cast("deque[_Group]", self._groups[agent_id])
        first = groups[0]
        first.unfinished -= 1
        if first.unfinished:
            return []
        groups.popleft()
        if not groups:
            del self._groups[agent_id]
            return []
        started, groups[0].blocked = groups[0].blocked, []
        return started

    def blocked(self) -> Iterator[Call]:
        """Return the calls that may not start yet."""
        for groups in self._groups.values():
            if isinstance(groups, deque):
                for group in groups:
                    yield from group.blocked

    def clear(self) -> None:
        """Remove every call."""
        self._groups.clear()


@dataclass(slots=True, eq=False)
class _Group:
    """Calls that may run concurrently once the group starts; `unfinished` counts them, including blocked ones."""

    kind: Kind
    blocked: list[Call] = field(default_factory=list)
    unfinished: int = 1

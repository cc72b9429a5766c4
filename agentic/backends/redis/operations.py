"""What Redis is asked about agents, each as a kind of request."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import msgspec

from agentic.backends.redis.keys import family_of_marks, id_in, marks_key
from agentic.backends.redis.requests import Command, Request, Run, Single, Write
from agentic.backends.redis.scripts import DONE, SCRIPTS, SLOW
from agentic.backends.redis.server_info import OutOfStep
from agentic.errors import BackendError


class Read(Single):
    """Reads what each key holds, None where it is not there or no string; an outcome is that and the server's time."""

    repeatable = True
    reads = True

    def command(self) -> Command:
        """Return what to send now."""
        return ("MGET", *self.keys)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Request.settle` does, with the time that it comes with."""
        if isinstance(reply, BackendError):
            return super().settle(reply)
        records, now = reply
        return super().settle(list(zip(records, repeat(now))))


class ReadType(Request):
    """Reads which type of value one key holds: `none` where it is not there."""

    repeatable = True
    reads = True

    def command(self) -> Command:
        """Return what to send now."""
        return ("TYPE", self.key)

    def check(self, reply: Any) -> None:
        """Check a reply as `Request.check` does."""
        if not isinstance(reply, bytes):
            raise OutOfStep("the answer to TYPE is none: the connection is out of step")

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Request.settle` does."""
        return super().settle(reply if isinstance(reply, BackendError) else [reply[0]])


class Register(Write):
    """Adds or replaces agents."""

    script = SCRIPTS["register"]


class Update(Write):
    """Changes fields of agents."""

    script = SCRIPTS["update"]


class Deregister(Write):
    """Removes agents."""

    script = SCRIPTS["deregister"]


class Beat(Run, Single):
    """Sends heartbeats. A second one stamps what the first would have, and never creates an agent."""

    repeatable = True
    script = SCRIPTS["heartbeat"]

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Run.settle` does; what it left is for the slow script."""
        if isinstance(reply, list) and len(self.places) == len(self.batch.outcomes):
            self.batch.outcomes[:] = reply
            if reply.count(DONE) == len(reply):
                return []  # Nearly always so.
        return [*super().settle(reply), *self._left(SlowBeat, SLOW)]


class SlowBeat(Write):
    """Sends heartbeats to agents whose record needs more than a stamp."""

    repeatable = True
    script = SCRIPTS["heartbeat_slow"]

    def while_moving(self) -> Sequence[Request]:
        """Return requests that do what can be done meanwhile."""
        return [Stamp(self.batch, [place]) for place in self.places]


class Stamp(Beat):
    """Sends heartbeats that leave offline agents offline, for they name no key but the agent's."""

    def _further(self) -> tuple[Command, Command]:
        return (), (1,)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Run.settle` does; what needs the slow script after all waits until the slot has moved."""
        return [*Run.settle(self, reply), *self._left(WaitingBeat, SLOW)]


class WaitingBeat(SlowBeat):
    """Sends heartbeats that can only be sent when the slot of their keys has moved."""

    def while_moving(self) -> Sequence[Request]:
        """Return this request, to be sent again."""
        return [self]


class Mark(Write):
    """Marks stale agents offline, and lets the store keep which ones until the next such request of the family."""

    script = SCRIPTS["reap"]

    def _further(self) -> tuple[Command, Command]:
        keys, arguments = super()._further()
        marks = marks_key(self.family, self.writer.generations.writer)
        return (marks, *keys), (self.writer.marks.sent(self.family), *arguments)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Write.settle` does, and take note of the agents that it says were marked."""
        if isinstance(reply, list):
            marked = [key for key, outcome in zip(self.keys, reply, strict=True) if outcome == DONE]
            self.writer.marks.answered(self.family, map(id_in, marked))
        return super().settle(reply)


class Settle(Write):
    """Makes sure that lost writes of a family never take effect. Its key is the one of the family's marks."""

    script = SCRIPTS["settle"]

    @property
    def family(self) -> bytes:
        """The family that it is about."""
        return family_of_marks(self.key)


class TrySettle(Settle):
    """Does so unless the slot of the family is being moved, which may take long."""

    def while_moving(self) -> Sequence[Request]:
        """Return nothing."""
        return []


class FindMarks(Settle):
    """Does so, and finds out what the last `Mark` of the family has marked. Not to be sent beside a `Mark`."""

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Write.settle` does, and take note of the agents that it says were marked."""
        if isinstance(reply, list):
            token, keys = msgspec.json.decode(reply[0], type=tuple[str, list[str]]) if reply[0] else ("", [])
            self.writer.marks.found(self.family, token, [id_in(key.encode()) for key in keys])
        return super().settle(reply)

"""The kinds of request about agents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import msgspec

from agentic.backends.redis.keys import (
    counter_key,
    drains_key,
    encoded_id,
    family_of,
    family_of_marks,
    id_in,
    marks_key,
)
from agentic.backends.redis.requests import Command, Request, Run, Single, Write
from agentic.backends.redis.scripts import DONE, SCRIPTS, SLOW
from agentic.backends.redis.server_info import OutOfStep
from agentic.errors import BackendError


class Read(Single):
    """Reads the value of each key, None if absent or not a string; an outcome is the value and the server's time."""

    repeatable = True
    reads = True

    def command(self) -> Command:
        """Return the command to send."""
        return ("MGET", *self.keys)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Request.settle`, adding the server's time to each value."""
        if isinstance(reply, BackendError):
            return super().settle(reply)
        records, now = reply
        return super().settle(list(zip(records, repeat(now))))


class ReadType(Request):
    """Reads the type of one key's value; `none` if the key is absent."""

    repeatable = True
    reads = True

    def command(self) -> Command:
        """Return the command to send."""
        return ("TYPE", self.key)

    def check(self, reply: Any) -> None:
        """Check a reply like `Request.check`."""
        if not isinstance(reply, bytes):
            raise OutOfStep("the reply to TYPE is not a type: the connection is out of step")

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Request.settle`, without the server's time."""
        return super().settle(reply if isinstance(reply, BackendError) else [reply[0]])


class ReadDrain(Read):
    """Reads the drain of the agent of each key, None if there is none; an outcome is its JSON and the server's time."""

    def command(self) -> Command:
        """Return the command to send."""
        return ("HMGET", drains_key(family_of(self.key)), *map(encoded_id, self.keys))


class ReadDrains(Request):
    """Reads all drains of the family of one key; the outcome is a dict of their JSON by id, and the server's time."""

    repeatable = True
    reads = True

    def command(self) -> Command:
        """Return the command to send."""
        return ("HGETALL", drains_key(family_of(self.key)))

    def check(self, reply: Any) -> None:
        """Check a reply like `Request.check`: RESP3 has a map, RESP2 a list of names and values."""
        if not isinstance(reply, (dict, list)):
            raise OutOfStep("the reply to HGETALL is no map: the connection is out of step")

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Request.settle`."""
        if isinstance(reply, BackendError):
            return super().settle(reply)
        found, now = reply
        drains = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        return super().settle([(drains, now)])


class WriteWithDrains(Write):
    """Runs a script that also uses the drains of the family."""

    def _further(self) -> tuple[Command, Command]:
        keys, arguments = super()._further()
        return (drains_key(self.family), *keys), arguments


class ClearDrains(WriteWithDrains):
    """Removes all drains of the family of one key."""

    script = SCRIPTS["clear_drains"]


class SetDrain(WriteWithDrains):
    """Stores and removes drains."""

    script = SCRIPTS["drain"]


class Register(WriteWithDrains):
    """Adds or replaces agents."""

    script = SCRIPTS["register"]

    def _further(self) -> tuple[Command, Command]:
        keys, arguments = super()._further()
        return (counter_key(self.family), *keys), arguments


class Update(Write):
    """Changes fields of agents."""

    script = SCRIPTS["update"]


class Deregister(Write):
    """Removes agents."""

    script = SCRIPTS["deregister"]


class Heartbeat(Run, Single):
    """Sends heartbeats. Safe to repeat: a second one only renews the stamp, and never creates an agent."""

    repeatable = True
    has_numbers = True
    script = SCRIPTS["heartbeat"]

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Run.settle`; send skipped agents to the slow script."""
        if isinstance(reply, list) and len(self.places) == len(self.batch.outcomes):
            self.batch.outcomes[:] = reply
            if reply.count(DONE) == len(reply):
                return []  # The common case.
        return [*super().settle(reply), *self._left(SlowHeartbeat, SLOW)]


class SlowHeartbeat(WriteWithDrains):
    """Sends heartbeats to agents whose records need more than a new stamp."""

    repeatable = True
    has_numbers = True
    script = SCRIPTS["heartbeat_slow"]

    def while_moving(self) -> Sequence[Request]:
        """Return requests that only renew the stamps, which works meanwhile."""
        return [StampOnly(self.batch, [place]) for place in self.places]


class StampOnly(Heartbeat):
    """Sends heartbeats that leave offline agents offline; each uses only the key of its agent."""

    def _further(self) -> tuple[Command, Command]:
        return (), (b"offline",)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Run.settle`; agents that need the slow script wait until the slot has moved."""
        return [*Run.settle(self, reply), *self._left(DeferredHeartbeat, SLOW)]


class DeferredHeartbeat(SlowHeartbeat):
    """Sends heartbeats that must wait until the slot of their keys has moved."""

    def while_moving(self) -> Sequence[Request]:
        """Return this request, to be retried."""
        return [self]


class Mark(Write):
    """Marks stale agents offline. The store keeps the marked keys until the next such request for the family."""

    script = SCRIPTS["reap"]

    def _further(self) -> tuple[Command, Command]:
        keys, arguments = super()._further()
        marks = marks_key(self.family, self.writer.generations.writer)
        return (marks, *keys), (self.writer.marks.sent(self.family), *arguments)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Write.settle`, and record the marked agents."""
        if isinstance(reply, list):
            marked = [key for key, outcome in zip(self.keys, reply, strict=True) if outcome == DONE]
            self.writer.marks.answered(self.family, map(id_in, marked))
        return super().settle(reply)


class Settle(Write):
    """Prevents lost writes of a family from taking effect. Its key is that of the family's marks."""

    script = SCRIPTS["settle"]

    @property
    def family(self) -> bytes:
        """The family of keys to settle."""
        return family_of_marks(self.key)


class TrySettle(Settle):
    """Like `Settle`, but does nothing while the slot of the family is being moved, which may take long."""

    def while_moving(self) -> Sequence[Request]:
        """Return nothing."""
        return []


class FindMarks(Settle):
    """Like `Settle`, and reads what the last `Mark` of the family marked. Never send it concurrently with a `Mark`."""

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Write.settle`, and record the marked agents."""
        if isinstance(reply, list):
            token, keys = msgspec.json.decode(reply[0], type=tuple[str, list[str]]) if reply[0] else ("", [])
            self.writer.marks.found(self.family, token, [id_in(key.encode()) for key in keys])
        return super().settle(reply)

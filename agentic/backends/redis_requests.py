"""What is asked of Redis about many keys, in requests of bounded size, each sent until its keys have their outcomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, ClassVar, Final

from redis.exceptions import NoScriptError

from agentic.backends.redis_scripts import AGAIN, DONE, SCRIPTS, SLOW, Script
from agentic.backends.redis_server_info import OutOfStep, in_step
from agentic.errors import BackendError

MAX_BYTES: Final = 1 << 20
"""How long the arguments of one request may be together; a single longer one goes alone."""

Command = tuple[Any, ...]


@dataclass(slots=True)
class Batch:
    """Keys, what a script is given for all and for each of them, and each one's outcome as soon as it is known."""

    keys: Sequence[bytes]
    common: Command = ()
    each: Sequence[Command] | None = None
    outcomes: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.keys)


class Request(ABC):
    """A part of a batch that goes to the server in one command: keys of one slot.

    Attributes:
        repeatable: Whether it may be sent again when its connection broke.
        reads: Whether it only reads: then its reply comes with the server's time, and counts only if the server is in
            sync.
    """

    repeatable: ClassVar[bool] = False
    reads: ClassVar[bool] = False

    def __init__(self, batch: Batch, places: Sequence[int]) -> None:
        """Ask for the keys at these places of the batch."""
        self.batch = batch
        self.places = places

    @property
    def key(self) -> bytes:
        """One of its keys: the others lie in the same slot."""
        return self.batch.keys[self.places[0]]

    @property
    def keys(self) -> Sequence[bytes]:
        """All of its keys."""
        return self._part(self.batch.keys)

    @abstractmethod
    def command(self) -> Command:
        """Return what to send now."""

    def check(self, reply: Any) -> None:
        """Check that a reply has the form of one to this request.

        Raises:
            OutOfStep: It has not.
        """
        in_step(reply, len(self.places))

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply, or the error in its place, as outcomes; return what is to be sent for keys without one."""
        outcomes = self.batch.outcomes
        each = [reply] * len(self.places) if isinstance(reply, BackendError) else reply
        for place, outcome in zip(self.places, each, strict=True):
            outcomes[place] = outcome
        return self._left(type(self), AGAIN)

    def _left(self, kind: type[Request], outcome: int) -> Sequence[Request]:
        """Return a request of a kind for the keys that have this outcome."""
        outcomes = self.batch.outcomes
        places = [place for place in self.places if outcomes[place] == outcome]
        return [kind(self.batch, places)] if places else []

    def _part(self, values: Sequence[Any]) -> Sequence[Any]:
        return values if len(self.places) == len(values) else [values[place] for place in self.places]


class Read(Request):
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


class Run(Request):
    """Runs a script.

    Attributes:
        script: Which one.
    """

    script: ClassVar[Script]

    def __init__(self, batch: Batch, places: Sequence[int]) -> None:
        """Ask for the keys at these places of the batch."""
        super().__init__(batch, places)
        self._server_lacks_it = False

    def command(self) -> Command:
        """Return what to send now."""
        name = ("EVAL", self.script.text) if self._server_lacks_it else ("EVALSHA", self.script.sha)
        each = self.batch.each
        arguments = () if each is None else chain.from_iterable(self._part(each))
        return (*name, len(self.places), *self.keys, *self.batch.common, *arguments)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Request.settle` does; a script that the server lacks is sent with its text."""
        if isinstance(reply, BackendError) and isinstance(reply.__cause__, NoScriptError):
            self._server_lacks_it = True
            return [self]
        return super().settle(reply)


class SlowBeat(Run):
    """Sends heartbeats to agents whose record needs more than a stamp."""

    repeatable = True
    script = SCRIPTS["heartbeat_slow"]


class Beat(Run):
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


class Register(Run):
    """Adds or replaces agents."""

    script = SCRIPTS["register"]


class Update(Run):
    """Changes fields of agents."""

    script = SCRIPTS["update"]


class Deregister(Run):
    """Removes agents."""

    script = SCRIPTS["deregister"]


class Mark(Run):
    """Marks stale agents offline."""

    script = SCRIPTS["reap"]


def requests(kind: type[Request], batch: Batch, groups: Sequence[Sequence[int]]) -> list[Request]:
    """Return the requests of a kind for a batch, given the places of its keys, those of one slot together."""
    if batch.each is None:
        return [kind(batch, group) for group in groups]
    sizes = [sum(len(argument) for argument in each if not isinstance(argument, int)) for each in batch.each]
    return [kind(batch, part) for group in groups for part in _parts(group, sizes)]


def _parts(places: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut places into parts whose sizes add up to `MAX_BYTES` at most, but for a part of one."""
    begin = total = 0
    for end, place in enumerate(places):
        total += sizes[place]
        if total > MAX_BYTES and end > begin:
            yield places[begin:end]
            begin, total = end, sizes[place]
    yield places[begin:]

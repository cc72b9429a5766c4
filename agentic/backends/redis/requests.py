"""How Redis is asked about many keys: in requests of bounded size, each sent until its keys have their outcomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Final, cast

from redis.exceptions import MaxConnectionsError, NoScriptError, ResponseError

from agentic.backends.redis.generations import Generations
from agentic.backends.redis.keys import family_of, writer_key
from agentic.backends.redis.marks import Marks
from agentic.backends.redis.scripts import AGAIN, Script
from agentic.backends.redis.server_info import in_step
from agentic.errors import BackendError

MAX_BYTES: Final = 1 << 20
"""How long the arguments of one request may be together; a single longer one goes alone."""

Command = tuple[Any, ...]


@dataclass(slots=True)
class Writer:
    """What a registry object knows of the writes that it has sent."""

    generations: Generations = field(default_factory=Generations)
    marks: Marks = field(default_factory=Marks)


@dataclass(slots=True)
class Batch:
    """Keys, what a script is given for all and for each of them, and each one's outcome as soon as it is known.

    Attributes:
        writer: Who sends it; None for what only reads.
    """

    keys: Sequence[bytes]
    common: Command = ()
    each: Sequence[Command] | None = None
    writer: Writer | None = None
    outcomes: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.keys)


class Request(ABC):
    """A part of a batch that goes to the server in one command: keys of one slot.

    Attributes:
        repeatable: Whether it may be sent again when its connection broke.
        reads: Whether it only reads: then its reply comes with the server's time, and counts only if the server is in
            sync.
        keys: Its keys, which lie in one slot.
        key: The first of them.
    """

    repeatable: ClassVar[bool] = False
    reads: ClassVar[bool] = False

    def __init__(self, batch: Batch, places: Sequence[int]) -> None:
        """Ask for the keys at these places of the batch."""
        self.batch = batch
        self.places = places
        keys = batch.keys
        self.keys = keys if len(places) == len(keys) else [keys[place] for place in places]
        self.key = self.keys[0]

    @abstractmethod
    def command(self) -> Command:
        """Return what to send now."""

    def lost(self) -> None:  # noqa: B027  most requests do no harm when they take effect later
        """Take note that what was sent last may still take effect: it was not answered."""

    def while_moving(self) -> Sequence[Request]:
        """Return what to send after a refusal: its slot is being moved, and not all of its keys are at one server."""
        return [self]

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


class Single(Request):
    """A request whose keys may be asked about one by one, which works while they move to another server."""

    def while_moving(self) -> Sequence[Request]:
        """Return a request for each key."""
        return [type(self)(self.batch, [place]) for place in self.places]


class Run(Request):
    """Runs a script.

    Attributes:
        script: Which one.
    """

    script: ClassVar[Script]
    _server_lacks_it = False

    def command(self) -> Command:
        """Return what to send now."""
        name = ("EVAL", self.script.text) if self._server_lacks_it else ("EVALSHA", self.script.sha)
        each = self.batch.each
        arguments = () if each is None else chain.from_iterable([each[place] for place in self.places])
        further_keys, further_arguments = self._further()
        count = len(self.keys) + len(further_keys)
        return (*name, count, *self.keys, *further_keys, *self.batch.common, *arguments, *further_arguments)

    def _further(self) -> tuple[Command, Command]:
        """Return keys and arguments that follow those of the batch."""
        return (), ()

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Request.settle` does; a script that the server lacks is sent with its text."""
        if isinstance(reply, BackendError) and isinstance(reply.__cause__, NoScriptError):
            self._server_lacks_it = True
            return [self]
        return super().settle(reply)


class Write(Run):
    """Runs a script that changes agents, unless a later write of the same registry object has overtaken it."""

    _sent = 0

    @property
    def writer(self) -> Writer:
        """Who sends it."""
        return cast("Writer", self.batch.writer)

    @property
    def family(self) -> bytes:
        """The family of its keys."""
        return family_of(self.key)

    def _further(self) -> tuple[Command, Command]:
        generations = self.writer.generations
        self._sent = generations.current
        return (writer_key(self.family, generations.writer),), (self._sent,)

    def lost(self) -> None:
        """Let no write leave that this one could overtake."""
        self.writer.generations.lost(self.family, self._sent)

    def check(self, reply: Any) -> None:
        """Check a reply as `Request.check` does."""
        if not isinstance(reply, int):
            super().check(reply)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Take a reply as `Run.settle` does; one that was refused was not applied, and is sent again."""
        if isinstance(reply, int):
            self.writer.generations.refused(reply)
            return [self]
        if not isinstance(reply, BackendError):
            self.writer.generations.applied(self.family, self._sent)
        return super().settle(reply)


def requests(kind: type[Request], batch: Batch, groups: Sequence[Sequence[int]]) -> list[Request]:
    """Return the requests of a kind for a batch, given the places of its keys, those of one slot together."""
    if batch.each is None:
        return [kind(batch, group) for group in groups]
    sizes = [sum(len(argument) for argument in each if not isinstance(argument, int)) for each in batch.each]
    return [kind(batch, part) for group in groups for part in bounded(group, sizes)]


def bounded(places: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut places into parts whose sizes add up to `MAX_BYTES` at most, but for a part of one."""
    begin = total = 0
    for end, place in enumerate(places):
        total += sizes[place]
        if total > MAX_BYTES and end > begin:
            yield places[begin:end]
            begin, total = end, sizes[place]
    yield places[begin:]


@contextmanager
def under_way(*requests: Request) -> Iterator[None]:
    """Tell requests that they are lost when the body, which sends them, ends without an answer."""
    try:
        yield
    except (ResponseError, MaxConnectionsError):
        raise  # An answer; or nothing was sent.
    except BaseException:
        for request in requests:
            request.lost()
        raise

"""Split batches of keys into requests of bounded size, each sent until every key has an outcome."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Final, cast

import msgspec
from redis.exceptions import MaxConnectionsError, NoScriptError, ResponseError

from agentic.backends.redis.generations import Generations
from agentic.backends.redis.keys import family_of, writer_key
from agentic.backends.redis.marks import Marks
from agentic.backends.redis.scripts import AGAIN, Script
from agentic.backends.redis.server_info import checked_list
from agentic.errors import BackendError

MAX_BYTES: Final = 1 << 20
"""Limit of the total size of a request's arguments; a larger single item goes in its own request."""

Command = tuple[Any, ...]


@dataclass(slots=True)
class Writer:
    """State of the writes that a registry object has sent."""

    generations: Generations = field(default_factory=Generations)
    marks: Marks = field(default_factory=Marks)


@dataclass(slots=True)
class Batch:
    """Keys, the arguments of a script for them, and the outcome of each key once known.

    Attributes:
        common: Arguments for all keys together.
        each: Arguments for each key, or one number for each, if any.
        writer: The state of the sender's writes; None if the batch only reads.
    """

    keys: Sequence[bytes]
    common: Command = ()
    each: Sequence[Any] | None = None
    writer: Writer | None = None
    outcomes: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.keys)


class Request(ABC):
    """One command for a part of a batch, with keys of one slot.

    Attributes:
        repeatable: Whether it may be sent again after its connection was lost.
        has_numbers: Whether `each` of the batch has one number of 16 digits for each key. They are sent as one list,
            and no batch exceeds `MAX_BYTES`.
        reads: Whether it only reads. Its reply then comes with the server's time, and is valid only if the server is in
            sync.
        places: The indexes of its keys in the batch.
        keys: Its keys, all in one slot.
        key: The first key.
    """

    repeatable: ClassVar[bool] = False
    has_numbers: ClassVar[bool] = False
    reads: ClassVar[bool] = False

    def __init__(self, batch: Batch, places: Sequence[int]) -> None:
        """Create a request for the keys at these indexes of the batch."""
        self.batch = batch
        self.places = places
        keys = batch.keys
        self.keys = keys if len(places) == len(keys) else [keys[place] for place in places]
        self.key = self.keys[0]

    @abstractmethod
    def command(self) -> Command:
        """Return the command to send."""

    def lost(self) -> None:  # noqa: B027  most requests may safely take effect late
        """Record that the last send got no reply and may still take effect."""

    def while_moving(self) -> Sequence[Request]:
        """Return the requests to send instead while its slot is being moved and its keys are on two servers."""
        return [self]

    def check(self, reply: Any) -> None:
        """Check the form of a reply.

        Raises:
            OutOfStep: The reply has another form.
        """
        checked_list(reply, len(self.places))

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply or error as outcomes; return the requests to send for keys without a final outcome."""
        outcomes = self.batch.outcomes
        each = [reply] * len(self.places) if isinstance(reply, BackendError) else reply
        for place, outcome in zip(self.places, each, strict=True):
            outcomes[place] = outcome
        return self._left(type(self), AGAIN)

    def _left(self, kind: type[Request], outcome: int) -> Sequence[Request]:
        """Return a request of the given kind for the keys with this outcome."""
        outcomes = self.batch.outcomes
        places = [place for place in self.places if outcomes[place] == outcome]
        return [kind(self.batch, places)] if places else []


class Single(Request):
    """A request that can be split into one request per key, which works while keys move to another server."""

    def while_moving(self) -> Sequence[Request]:
        """Return one request per key."""
        return [type(self)(self.batch, [place]) for place in self.places]


class Run(Request):
    """Runs a script.

    Attributes:
        script: The script to run.
    """

    script: ClassVar[Script]
    _send_source = False

    def command(self) -> Command:
        """Return the command to send."""
        name = ("EVAL", self.script.text) if self._send_source else ("EVALSHA", self.script.sha)
        each: Sequence[Any] = self.batch.each or ()
        if each and len(self.places) < len(each):
            each = [each[place] for place in self.places]
        # One argument for all numbers, because the driver would convert each one slowly.
        arguments = (msgspec.json.encode(each),) if self.has_numbers and each else chain.from_iterable(each)
        further_keys, further_arguments = self._further()
        count = len(self.keys) + len(further_keys)
        return (*name, count, *self.keys, *further_keys, *self.batch.common, *arguments, *further_arguments)

    def _further(self) -> tuple[Command, Command]:
        """Return the keys and arguments to send after those of the batch."""
        return (), ()

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Request.settle`; if the server lacks the script, send its source."""
        if isinstance(reply, BackendError) and isinstance(reply.__cause__, NoScriptError):
            self._send_source = True
            return [self]
        return super().settle(reply)


class Write(Run):
    """Runs a script that changes agents, unless the store has seen a higher generation from this registry object."""

    _sent = 0

    @property
    def writer(self) -> Writer:
        """The state of the sender's writes."""
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
        """Raise the generation, so that this write cannot take effect after a later one."""
        self.writer.generations.lost(self.family, self._sent)

    def check(self, reply: Any) -> None:
        """Check a reply like `Request.check`; an integer is the higher generation of a refusal."""
        if not isinstance(reply, int):
            super().check(reply)

    def settle(self, reply: Any) -> Sequence[Request]:
        """Store a reply like `Run.settle`; send a refused write again."""
        if isinstance(reply, int):
            self.writer.generations.refused(reply)
            return [self]
        if not isinstance(reply, BackendError):
            self.writer.generations.applied(self.family, self._sent)
        return super().settle(reply)


def requests(kind: type[Request], batch: Batch, groups: Sequence[Sequence[int]]) -> list[Request]:
    """Return requests of one kind for a batch, given the indexes of its keys grouped by slot."""
    if batch.each is None or kind.has_numbers:
        return [kind(batch, group) for group in groups]
    sizes = [sum(len(argument) for argument in each if not isinstance(argument, int)) for each in batch.each]
    return [kind(batch, part) for group in groups for part in bounded(group, sizes)]


def bounded(places: Sequence[int], sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split indexes into parts of at most `MAX_BYTES` in total; a larger single item is its own part."""
    begin = total = 0
    for end, place in enumerate(places):
        total += sizes[place]
        if total > MAX_BYTES and end > begin:
            yield places[begin:end]
            begin, total = end, sizes[place]
    yield places[begin:]


@contextmanager
def lost_on_error(*requests: Request) -> Iterator[None]:
    """Mark the requests as lost if the body, which sends them, ends without a reply."""
    try:
        yield
    except (ResponseError, MaxConnectionsError):
        raise  # The server replied, or nothing was sent.
    except BaseException:
        for request in requests:
            request.lost()
        raise

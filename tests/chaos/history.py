"""The history of a run: every client writes each call before it starts and after it ends.

Times are from the host's monotonic clock, which its processes share.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

Outcome = Literal["ok", "absent", "replaced", "failed", "open"]
"""Done; no such agent, or a later start of it, so nothing done; failed or cancelled, so perhaps done; not ended."""


class Seen(msgspec.Struct, array_like=True, frozen=True):
    """An agent as returned by a call."""

    id: str
    status: str
    load: int


class Call(msgspec.Struct, tag=True, kw_only=True, omit_defaults=True):
    """A call, with its outcome once it has ended."""

    who: str
    number: int
    kind: str
    start: float
    by: str = ""
    """The registry object of the client that made the call."""
    id: str = ""
    load: int | None = None
    incarnation: int = 0
    """The one that the call named, or that a registration without one returned; 0 for none."""
    end: float = math.inf
    outcome: Outcome = "open"
    seen: list[Seen] = []
    reported: list[str] = []


class End(msgspec.Struct, tag=True, kw_only=True, omit_defaults=True):
    """The outcome of a call."""

    who: str
    number: int
    end: float
    outcome: Outcome
    incarnation: int = 0
    seen: list[Seen] = []
    reported: list[str] = []


class Note(msgspec.Struct, tag=True, kw_only=True, omit_defaults=True):
    """Another event: a fault, a reply to the wrong call, a client that is ready or has ended."""

    who: str
    kind: str
    start: float
    end: float = math.inf
    text: str = ""


class Journal:
    """Writes each line to a file at once, so that a killed process loses none."""

    def __init__(self, path: Path, who: str) -> None:
        self.who = who
        self._path = path
        self._next = 0

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)

    def begin(self, by: str, kind: str, agent_id: str, load: int | None, incarnation: int = 0) -> int:
        self._next += 1
        line = Call(who=self.who, number=self._next, by=by, kind=kind, start=time.monotonic(), id=agent_id)
        line.load, line.incarnation = load, incarnation
        self._write(line)
        return self._next

    def end(
        self,
        number: int,
        outcome: Outcome,
        seen: Iterable[Seen] = (),
        reported: Iterable[str] = (),
        incarnation: int = 0,
    ) -> None:
        line = End(who=self.who, number=number, end=time.monotonic(), outcome=outcome, incarnation=incarnation)
        line.seen, line.reported = list(seen), list(reported)
        self._write(line)

    def note(self, kind: str, text: str = "", start: float | None = None, end: float | None = None) -> None:
        now = time.monotonic()
        start, end = now if start is None else start, now if end is None else end
        self._write(Note(who=self.who, kind=kind, start=start, end=end, text=text))

    def _write(self, line: Call | End | Note) -> None:
        os.write(self._file, msgspec.json.encode(line) + b"\n")


class History(msgspec.Struct):
    """All calls and notes of a run, ordered by start."""

    calls: list[Call]
    notes: list[Note]


def read_history(folder: Path) -> History:
    """Merge the journals of a folder; the last line of a killed process may be incomplete."""
    decoder = msgspec.json.Decoder(Call | End | Note)
    calls: dict[tuple[str, int], Call] = {}
    notes: list[Note] = []
    for path in sorted(folder.glob("*.journal")):
        *lines, cut = path.read_bytes().split(b"\n")
        for line in map(decoder.decode, lines):
            if isinstance(line, Call):
                calls[line.who, line.number] = line
            elif isinstance(line, Note):
                notes.append(line)
            else:
                call = calls[line.who, line.number]
                call.end, call.outcome, call.seen, call.reported = line.end, line.outcome, line.seen, line.reported
                call.incarnation = call.incarnation or line.incarnation
        assert not cut or path.name != "conductor.journal"
    return History(sorted(calls.values(), key=lambda call: call.start), sorted(notes, key=lambda note: note.start))

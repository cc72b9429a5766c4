"""Checks a history against the guarantees of the registry.

A call takes effect at some time between its start and its end; one that found no agent has changed nothing. A failed write
may take effect after its end, until the same registry object gets a reply to a later call on that agent; if the store lost
its data meanwhile, at any time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tests.chaos.history import Call, History, Note, Seen
from tests.chaos.setting import IDLE_TTL, INTERVAL, SHARED, STALE_AFTER, TICK, TIMEOUT, TTL

MAX_DELAY = 10.0
"""Seconds after which every delayed request has arrived."""
LOSES_DATA = "loses data"
_VOID = frozenset({"absent", "replaced"})
"""Outcomes of calls that have changed nothing."""
_ANSWERED = _VOID | {"ok"}
CUT_OFF = "cut off"
"""A kind of note: during all of it, the server was a replica without a link to its primary."""


class Observation(NamedTuple):
    """What one call observed of one agent; `seen` is None if it was absent."""

    call: Call
    seen: Seen | None


class Verdict(NamedTuple):
    """The violations found, and the number of checks of each claim."""

    wrong: list[str]
    tried: Counter[str]


class Checker:
    """Checks one history."""

    def __init__(self, history: History) -> None:
        self._calls = history.calls
        self._notes = history.notes
        self._losses = [note for note in history.notes if note.kind == "fault" and LOSES_DATA in note.text]
        self._reaps = [call for call in history.calls if call.kind == "reap"]
        self._wrong: list[str] = []
        self._tried: Counter[str] = Counter()

    def verdict(self) -> Verdict:
        for note in self._notes:
            if note.kind in {"crossed", "left"} or (note.kind == "ended" and note.text):
                self._wrong.append(f"{note.who}: {note.kind} {note.text}")
        observations = self._observations()
        for agent_id, calls in self._by_agent().items():
            if agent_id.startswith(SHARED):
                self._no_earlier_start_writes(calls)
            else:
                _Agent(self, agent_id, calls, observations[agent_id], self._losses, self._reaps).check()
        self._no_server_answers_while_cut_off()
        self._every_live_session_is_back()
        return Verdict(self._wrong, self._tried)

    def claim(self, name: str, holds: bool, what: str) -> None:
        """Count a check of a claim; record it if it fails."""
        self._tried[name] += 1
        if not holds:
            self._wrong.append(f"{name}: {what}")

    def _by_agent(self) -> dict[str, list[Call]]:
        found: defaultdict[str, list[Call]] = defaultdict(list)
        for call in self._calls:
            if call.id:
                found[call.id].append(call)
        return found

    def _observations(self) -> dict[str, list[Observation]]:
        """Return the observations of each agent; a list also observes the absence of agents it does not contain."""
        ids = {call.id for call in self._calls if call.id}
        found: dict[str, list[Observation]] = {agent_id: [] for agent_id in ids}
        for call in self._calls:
            if call.kind == "list" and call.outcome == "ok":
                here = {seen.id: seen for seen in call.seen}
                for agent_id in ids:
                    found[agent_id].append(Observation(call, here.get(agent_id)))
                self.claim("a list has each agent once", len(here) == len(call.seen), f"{call.who} #{call.number}")
            elif call.kind == "get" and call.outcome == "ok":
                found[call.id].append(Observation(call, call.seen[0]))
            elif call.id and call.outcome == "absent":
                found[call.id].append(Observation(call, None))
        return found

    def _no_earlier_start_writes(self, calls: list[Call]) -> None:
        """Check that no call of a start is acknowledged while the record of a later one is there without a break.

        The record of a start is there from its acknowledged registration or heartbeat until it may have expired, may have
        been removed, or the store may have lost its data.
        """
        breaks = [(call.start, call.end) for call in calls if call.kind == "deregister" and call.outcome not in _VOID]
        breaks += [(loss.start, loss.end) for loss in self._losses]
        signs = [call for call in calls if call.outcome == "ok" and call.incarnation]
        for call in calls:
            if not call.incarnation or (call.kind == "register" and call.outcome != "ok"):
                continue
            later = [
                sign
                for sign in signs
                if sign.incarnation > call.incarnation
                and sign.kind != "deregister"
                and sign.end < call.start
                and call.end - sign.start < TTL
                and not any(start < call.end and end > sign.start for start, end in breaks if start != call.start)
            ]
            if later:
                what = f"{call.id}: {_short(call)} after {_short(later[-1])}"
                self.claim("no earlier start writes", call.outcome != "ok", what)

    def _no_server_answers_while_cut_off(self) -> None:
        for note in self._notes:
            if note.kind != CUT_OFF:
                continue
            for call in self._calls:
                if note.start <= call.start and call.end <= note.end:
                    answered = call.outcome in _ANSWERED
                    self.claim("a server that is cut off answers nothing", not answered, _short(call))

    def _every_live_session_is_back(self) -> None:
        calm = next((note.start for note in self._notes if note.kind == "calm"), None)
        if calm is None:
            return
        ended = {note.who for note in self._notes if note.kind == "ended"}
        ticks: defaultdict[str, list[float]] = defaultdict(list)
        for note in self._notes:
            if note.kind == "tick":
                ticks[note.who].append(note.start)
        beats: defaultdict[str, list[Call]] = defaultdict(list)
        for call in self._calls:
            if "-stays-" in call.id and call.kind in {"register", "heartbeat"} and call.who in ended:
                beats[call.id].append(call)
        for agent_id, own in sorted(beats.items()):
            # A call in progress when the last fault ended may take its whole timeout; no other call may delay the session.
            in_progress = [min(call.end, calm + TIMEOUT) for call in own if call.start <= calm < call.end]
            since = max([calm, *in_progress])
            by = _after_ticks(ticks[own[0].who], since, round(2 * INTERVAL / TICK))
            back = any(call.outcome == "ok" and calm <= call.start <= by for call in own)
            self.claim("back within two intervals", back, f"{agent_id}, from {since:.3f} to {by:.3f}")


def _after_ticks(ticks: list[float], since: float, count: int) -> float:
    """Return the time of the `count`-th tick after `since`; infinity if there is none."""
    at = bisect_right(ticks, since) + count - 1
    return ticks[at] if at < len(ticks) else math.inf


class _Agent:
    """Checks the claims about one agent."""

    def __init__(
        self,
        checker: Checker,
        agent_id: str,
        calls: list[Call],
        observations: list[Observation],
        losses: list[Note],
        reaps: list[Call],
    ) -> None:
        self._claim = checker.claim
        self._id = agent_id
        self._observations = observations
        self._losses = losses
        self._reaps = reaps
        self._until = _effects_end(calls, losses)
        self._writes = [c for c in calls if c.kind in {"register", "update"} and c.outcome not in _VOID]
        self._registrations = [c for c in calls if c.kind == "register"]
        self._removals = [c for c in calls if c.kind == "deregister" and c.outcome not in _VOID]
        self._beats = [c for c in calls if c.kind in {"register", "heartbeat"} and c.outcome not in _VOID]
        self._alive = [c for c in calls if c.kind in {"register", "heartbeat", "update", "get"}]
        self._last_sign = _LastBefore(self._alive)
        self._last_beat = _LastBefore(self._beats)
        self._last_write = _LastBefore(self._writes)
        self._last_removal = _LastBefore(self._removals)

    def check(self) -> None:
        for call in self._alive:
            if call.outcome == "ok" and call.kind in {"heartbeat", "update"}:
                self._stays_removed(call, is_there=True)
        for observation in self._observations:
            self._stays_removed(observation.call, is_there=observation.seen is not None)
            if observation.seen is None:
                self._check_absence(observation.call)
            else:
                self._carries_the_latest_load(observation.call, observation.seen)
                if observation.seen.status == "offline":
                    self._check_offline(observation.call)
        self._each_transition_was_reported_once()

    def _stays_removed(self, observation: Call, *, is_there: bool) -> None:
        removal = self._last_removal(observation.start)
        if removal is None:
            return
        registered_since = any(b.start < observation.end and self._may_follow(b, removal) for b in self._registrations)
        self._claim(
            "a removed agent stays removed", not is_there or registered_since, self._describe(observation, removal)
        )

    def _check_absence(self, observation: Call) -> None:
        sign = self._last_sign(observation.start)
        if sign is None:
            return
        beat = self._last_beat(observation.start)
        excused = (
            any(r.start < observation.end and self._may_follow(r, sign) for r in self._removals)
            or any(loss.start < observation.end and loss.end > sign.start for loss in self._losses)
            or beat is None
            or observation.end - beat.start > (IDLE_TTL if "-idle-" in self._id else TTL)
        )
        self._claim("an agent is not lost", excused, self._describe(observation, sign))

    def _carries_the_latest_load(self, observation: Call, seen: Seen) -> None:
        last = self._last_write(observation.start)
        if last is None:
            return
        possible = {last.load} | {
            w.load for w in self._writes if w.start < observation.end and self._may_follow(w, last)
        }
        self._claim(
            "no acknowledged update is lost",
            seen.load in possible,
            f"{self._describe(observation, last)}, read {seen.load}",
        )

    def _check_offline(self, observation: Call) -> None:
        beat = self._last_beat(observation.start)
        if beat is None:
            return
        self._claim(
            "offline means silent", observation.end - beat.start > STALE_AFTER, self._describe(observation, beat)
        )
        reported = any(reap.end > beat.start and self._id in reap.reported for reap in self._reaps)
        self._claim(
            "offline means reported",
            reported or self._may_be_unreported(observation, beat),
            self._describe(observation, beat),
        )

    def _may_be_unreported(self, observation: Call, beat: Call) -> bool:
        """Return whether a sweep failed and its registry object has not swept since; its next sweep reports the marks."""
        failed = (r for r in self._reaps if r.start < observation.end and r.end > beat.start and r.outcome != "ok")
        return any(
            not any(
                _same_registry(r, later) and later.outcome == "ok" and later.start >= r.end for later in self._reaps
            )
            for r in failed
        )

    def _each_transition_was_reported_once(self) -> None:
        before: Call | None = None
        for reap in self._reaps:
            if self._id not in reap.reported:
                continue
            beat = self._last_beat(reap.start)
            silent = beat is None or reap.end - beat.start > STALE_AFTER
            self._claim("only the silent are reported", silent, self._describe(reap, beat))
            self._claim("a transition is reported once", self._came_back(before, reap), self._describe(reap, before))
            before = reap

    def _came_back(self, before: Call | None, after: Call) -> bool:
        """Return whether the agent may have sent a heartbeat between two reports."""
        return before is None or any(beat.start < after.end and self._may_follow(beat, before) for beat in self._beats)

    def _may_follow(self, call: Call, answered: Call) -> bool:
        """Return whether a call may take effect after another one that got its reply."""
        until = self._until[call.who, call.number]
        # Calls of one registry object on one agent take effect in order.
        if until < math.inf and _same_registry(call, answered) and call.start < answered.start:
            return False
        return until > answered.start

    def _describe(self, call: Call, other: Call | None) -> str:
        return f"{self._id}: {_short(call)} after {'nothing' if other is None else _short(other)}"


class _LastBefore:
    """Finds the acknowledged call with the latest start among those that ended by a given time."""

    def __init__(self, calls: list[Call]) -> None:
        done = sorted((call for call in calls if call.outcome == "ok"), key=lambda call: call.end)
        self._ends = [call.end for call in done]
        self._last = list(_latest_starts(done))

    def __call__(self, time: float) -> Call | None:
        at = bisect_right(self._ends, time)
        return self._last[at - 1] if at else None


def _latest_starts(calls: list[Call]) -> Iterator[Call]:
    latest: Call | None = None
    for call in calls:
        if latest is None or call.start > latest.start:
            latest = call
        yield latest


def _effects_end(calls: list[Call], losses: list[Note]) -> dict[tuple[str, int], float]:
    """Return, for each call on one agent, the time after which it can no longer take effect."""
    return {(call.who, call.number): _effect_ends(call, calls, losses) for call in calls}


def _effect_ends(call: Call, calls: list[Call], losses: list[Note]) -> float:
    if call.outcome in _ANSWERED:
        return call.end
    # A heartbeat that only stamps may arrive late. A store that loses its data also forgets which writes to refuse.
    if call.kind == "heartbeat" or any(call.start < loss.end and loss.start < call.end + MAX_DELAY for loss in losses):
        return math.inf
    answered = (
        later.end
        for later in calls
        if _same_registry(call, later) and later.start >= call.end and later.outcome in _ANSWERED
    )
    return min(answered, default=math.inf)


def _same_registry(one: Call, other: Call) -> bool:
    return (one.who, one.by) == (other.who, other.by)


def _short(call: Call) -> str:
    load = "" if call.load is None else f" of load {call.load}"
    return f"{call.who} #{call.number} {call.kind}{load} [{call.start:.3f}, {call.end:.3f}] {call.outcome}"

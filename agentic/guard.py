"""When a sweep has to wait: agents that could not send a heartbeat are not to be marked offline for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from agentic.clock import positive_seconds
from agentic.errors import ConfigurationError

JITTER: Final = 0.1
"""The part of an interval by which a reaper's pause may be longer or shorter."""

LONGEST_DEADLINE: Final = 300.0


def longest(interval: float) -> float:
    """Return the longest pause between two sweeps in seconds."""
    return interval * (1 + JITTER)


def deadline_that_fits(
    deadline: float | timedelta | None, *, ttl: float, interval: float, expires_after: float | None
) -> float:
    """Return for how many seconds sweeps may be put off, so that agents are marked offline before they are gone.

    Args:
        deadline: As asked for; None for 300 s, or nine tenths of what fits where that is less.
        ttl: Seconds of silence after which an agent is stale.
        interval: Seconds between sweeps.
        expires_after: Seconds of silence after which an agent is gone; None where it never is.

    Raises:
        ConfigurationError: An agent could be gone before it is marked offline.
    """
    seconds = None if deadline is None else positive_seconds(deadline, "guard_deadline")
    if expires_after is None:
        return LONGEST_DEADLINE if seconds is None else seconds
    longest_pause = longest(interval)
    room = expires_after - ttl - longest_pause
    if room > 0 and seconds is None:
        return min(LONGEST_DEADLINE, 0.9 * room)
    if seconds is None or seconds >= room:
        guard = "" if seconds is None else f", guard_deadline={seconds:g} s"
        shorter = "ttl or interval" if room <= 0 else f"guard_deadline below {room:g} s"
        raise ConfigurationError(
            f"agents could be gone before the reaper marks them offline: its ttl={ttl:g} s, interval={interval:g} s "
            f"(with jitter {longest_pause:g} s){guard} together must be shorter than the registry's "
            f"ttl={expires_after:g} s: choose a shorter {shorter}, or a longer ttl of the registry"
        )
    return seconds


class StallDetector:
    """Measures for how long the event loop was blocked; other programs on this host may have been stalled with it.

    While it runs it ticks every `ttl / 6`, so a stall is under-reported by at most that.
    """

    def __init__(self, ttl: float) -> None:
        """Look for stalls that matter to agents that are stale after `ttl` seconds."""
        self._period = ttl / 6
        self._due = math.inf
        self._longest = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tick while the body runs: by a timer, which no program that cancels every task can find."""
        self._schedule()
        try:
            yield
        finally:
            self._timer.cancel()

    def longest(self) -> float:
        """Return the longest stall in seconds since the last call."""
        # A stall that has only just ended is noticed here, before the timer has had its turn.
        self._look()
        longest, self._longest = self._longest, 0.0
        return longest

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._period
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._look()
        self._schedule()

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._longest = max(self._longest, now - self._due)
        self._due = max(self._due, now)  # Each stall is counted once.


class GracePeriod:
    """Finds out that agents may have been unable to send heartbeats, and gives them the time to do so.

    Reasons: the reaper was stalled (and with it, perhaps, its host, or whatever talks to the store), the store failed,
    or the store's clock was stepped, so that every heartbeat looks older than it is. Instants are seconds of one
    monotonic clock.

    Attributes:
        length: Seconds given at a time.
    """

    def __init__(self, ttl: float, interval: float) -> None:
        """Give agents that are stale after `ttl` seconds a third of it, or one interval where that is longer."""
        # Agents send a heartbeat every third of `ttl` or sooner: that is how long the next one may take, and a smaller
        # error marks nobody who is alive. Not derived from the interval: a short one would take the jitter of a busy
        # loop for a stall, and a long one would miss stalls that matter.
        self._tolerance = ttl / 3
        self.length = max(interval, ttl / 3)
        self._last: tuple[float, Sequence[datetime]] | None = None
        self._store_failed = False
        self._until = -math.inf

    def store_failed(self) -> None:
        """Take note that the store failed."""
        self._store_failed = True

    def reason(self, now: float, stalled: float, store_times: Sequence[datetime]) -> str | None:
        """Return why agents may have been unable to send heartbeats since the last call; None where they were not.

        Args:
            now: The instant.
            stalled: Seconds for which the reaper was stalled since the last call.
            store_times: The time of each of the store's servers, in an order that stays while the servers do.
        """
        failed, self._store_failed = self._store_failed, False
        last, self._last = self._last, (now, store_times)
        stepped = 0.0 if last is None else _longest_step(last[1], store_times, now - last[0])
        if failed:
            return "the store had failed"
        if abs(stepped) > self._tolerance:
            return f"the store's clock was stepped by {stepped:+.1f} s"
        if stalled > self._tolerance:
            return f"the reaper was held up for {stalled:.1f} s"
        return None

    def begin(self, now: float) -> None:
        """Give `length` seconds from now on."""
        self._until = now + self.length

    def left(self, now: float) -> float:
        """Return the seconds that are left; 0 where there are none."""
        return max(self._until - now, 0.0)


def _longest_step(before: Sequence[datetime], after: Sequence[datetime], elapsed: float) -> float:
    """Return by how many seconds one of the clocks was stepped at most; 0 where the servers are not the same ones."""
    if len(before) != len(after):
        return 0.0
    steps = ((later - earlier).total_seconds() - elapsed for earlier, later in zip(before, after, strict=True))
    return max(steps, key=abs)


class Deadline:
    """Bounds how long sweeps are put off, whatever the reasons, from the first time until one goes ahead."""

    def __init__(self, seconds: float, after_outage: float) -> None:
        """Allow so many seconds, but for outages of the store, and at least `after_outage` seconds after each."""
        self._seconds = self._left = seconds
        self._after_outage = min(after_outage, seconds)
        self._since: float | None = None

    def left(self, now: float) -> float:
        """Return for how many seconds the sweep may still be put off; the first call begins to count."""
        if self._since is None:
            self._since = now
        return max(self._left - (now - self._since), 0.0)

    def store_failed(self, now: float) -> None:
        """Stop to count until the next call of `left`."""
        self._left = max(self.left(now), self._after_outage)
        self._since = None

    def reset(self) -> None:
        """Allow the whole time again, which begins with the next call of `left`."""
        self._left = self._seconds
        self._since = None

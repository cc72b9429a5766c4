"""Postpone a sweep when agents may have been unable to send heartbeats, so that it does not mark them offline."""

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
"""The fraction by which a reaper's pause may be longer or shorter than its interval."""

DEFAULT_DEADLINE: Final = 300.0


def longest_pause(interval: float) -> float:
    """Return the longest pause between two sweeps, in seconds."""
    return interval * (1 + JITTER)


def valid_guard_deadline(
    deadline: float | timedelta | None, *, ttl: float, interval: float, expires_after: float | None
) -> float:
    """Return how many seconds sweeps may be postponed while agents are still marked offline before they are gone.

    Args:
        deadline: The option; None for 300 s, or nine tenths of the longest valid value if that is less.
        ttl: Seconds of silence after which an agent is stale.
        interval: Seconds between sweeps.
        expires_after: Seconds of silence after which an agent is gone; None for never.

    Raises:
        ConfigurationError: An agent could be gone before it is marked offline.
    """
    seconds = None if deadline is None else positive_seconds(deadline, "guard_deadline")
    if expires_after is None:
        return DEFAULT_DEADLINE if seconds is None else seconds
    pause = longest_pause(interval)
    room = expires_after - ttl - pause
    if room > 0 and seconds is None:
        return min(DEFAULT_DEADLINE, 0.9 * room)
    if seconds is None or seconds >= room:
        guard = "" if seconds is None else f", guard_deadline={seconds:g} s"
        shorter = "ttl or interval" if room <= 0 else f"guard_deadline below {room:g} s"
        raise ConfigurationError(
            f"agents could be gone before the reaper marks them offline: its ttl={ttl:g} s, interval={interval:g} s "
            f"(with jitter {pause:g} s){guard} together must be shorter than the registry's "
            f"ttl={expires_after:g} s: choose a shorter {shorter}, or a longer ttl of the registry"
        )
    return seconds


class StallDetector:
    """Measures how long the event loop was blocked. Other programs on this host may have been stalled as well.

    It ticks every `ttl / 6`, so a stall is under-reported by at most that.
    """

    def __init__(self, ttl: float) -> None:
        """Detect stalls that matter if agents are stale after `ttl` seconds."""
        self._period = ttl / 6
        self._due = math.inf
        self._longest = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tick while the body runs. Uses a timer because a program that cancels every task cannot cancel it."""
        self._schedule()
        try:
            yield
        finally:
            self._timer.cancel()

    def take_longest(self) -> float:
        """Return the longest stall since the last call, in seconds."""
        # Include a stall that has just ended, before the timer has run.
        self._measure()
        longest, self._longest = self._longest, 0.0
        return longest

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._period
        self._timer = loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._measure()
        self._schedule()

    def _measure(self) -> None:
        now = asyncio.get_running_loop().time()
        self._longest = max(self._longest, now - self._due)
        self._due = max(self._due, now)  # Each stall is counted once.


class GracePeriod:
    """Detects that agents may have been unable to send heartbeats, and gives them time to do so.

    Reasons: the reaper was stalled (and perhaps its host or the connection too), the store failed, or the store's clock
    was stepped, so that every heartbeat looks older than it is. All instants are seconds of one monotonic clock.

    Attributes:
        length: The length of a grace period in seconds.
    """

    def __init__(self, ttl: float, interval: float) -> None:
        """Set the length to a third of `ttl`, or to `interval` if that is longer."""
        # Agents send a heartbeat at least every third of `ttl`, so the next one takes at most that long, and a smaller
        # error marks no living agent. Not derived from `interval`: a short one would treat the jitter of a busy loop as
        # a stall, and a long one would miss stalls that matter.
        self._tolerance = ttl / 3
        self.length = max(interval, ttl / 3)
        self._last: tuple[float, Sequence[datetime]] | None = None
        self._store_failed = False
        self._until = -math.inf

    def store_failed(self) -> None:
        """Record that the store failed."""
        self._store_failed = True

    def reason(self, now: float, stalled: float, store_times: Sequence[datetime]) -> str | None:
        """Return why agents may have been unable to send heartbeats since the last call, or None.

        Args:
            now: The current instant.
            stalled: Seconds for which the reaper was stalled since the last call.
            store_times: The time of each of the store's servers, in a stable order.
        """
        failed, self._store_failed = self._store_failed, False
        last, self._last = self._last, (now, store_times)
        stepped = 0.0 if last is None else _longest_step(last[1], store_times, now - last[0])
        if failed:
            return "the store had failed"
        if abs(stepped) > self._tolerance:
            return f"the store's clock was stepped by {stepped:+.1f} s"
        if stalled > self._tolerance:
            return f"the reaper was stalled for {stalled:.1f} s"
        return None

    def begin(self, now: float) -> None:
        """Start a grace period now, replacing one in progress."""
        self._until = now + self.length

    def left(self, now: float) -> float:
        """Return the seconds left of the grace period; 0 if there is none."""
        return max(self._until - now, 0.0)


def _longest_step(before: Sequence[datetime], after: Sequence[datetime], elapsed: float) -> float:
    """Return the largest step of any server's clock in seconds; 0 if the number of servers has changed."""
    if len(before) != len(after):
        return 0.0
    steps = ((later - earlier).total_seconds() - elapsed for earlier, later in zip(before, after, strict=True))
    return max(steps, key=abs)


class SweepDeadline:
    """Limits how long sweeps are postponed for any reasons, from the first postponement until a sweep runs."""

    def __init__(self, seconds: float, after_outage: float) -> None:
        """Allow `seconds`, not counting store outages, and at least `after_outage` seconds after each outage."""
        self._seconds = self._left = seconds
        self._after_outage = min(after_outage, seconds)
        self._since: float | None = None

    def left(self, now: float) -> float:
        """Return the seconds for which the sweep may still be postponed. The first call starts the clock."""
        if self._since is None:
            self._since = now
        return max(self._left - (now - self._since), 0.0)

    def store_failed(self, now: float) -> None:
        """Stop the clock until the next call of `left`."""
        self._left = max(self.left(now), self._after_outage)
        self._since = None

    def reset(self) -> None:
        """Restore the whole time. The next call of `left` starts the clock."""
        self._left = self._seconds
        self._since = None

"""When a sweep would be unfair: agents that had no chance to send a heartbeat are not to be marked offline for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

import anyio


class Watch:
    """Notices that the event loop was held, whatever it was doing then; agents of this host may have been held with it.

    While `run` runs, which wakes up six times a `ttl`, a hold is told at most a sixth of `ttl` shorter than it was.
    """

    def __init__(self, ttl: float) -> None:
        """Watch for holds that matter to agents that are stale after `ttl` seconds."""
        self._period = ttl / 6
        self._due = math.inf
        self._longest = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._due = anyio.current_time() + self._period
            await anyio.sleep(self._period)
            self._look()

    def held(self) -> float:
        """Return the longest hold in seconds, as far as it was noticed, since the last call."""
        # A hold that has only just ended is noticed here, before `run` has had its turn.
        self._look()
        longest, self._longest = self._longest, 0.0
        return longest

    def _look(self) -> None:
        now = anyio.current_time()
        self._longest = max(self._longest, now - self._due)
        self._due = max(self._due, now)  # What was noticed once is not noticed again.


class Grace:
    """Finds out that agents may have been kept from beating, and gives them the time to do so.

    Kept from beating: the reaper was held up (as was, perhaps, all of its host, or all that talk to the store), the
    store was out of reach, or the store's clock was stepped, so that every heartbeat looks older than it is. Times are
    seconds of one monotonic clock.

    Attributes:
        length: Seconds of grace given at once.
    """

    def __init__(self, ttl: float, interval: float, deadline: float) -> None:
        """Give grace again and again where needed, but never more than `deadline` seconds on end.

        Args:
            ttl: Seconds of silence after which an agent is stale.
            interval: Seconds between sweeps.
            deadline: Seconds.
        """
        # Agents beat every third of `ttl` or sooner. So that is the time which the next beat of each may need, and what
        # each can lose without harm: a look that is wrong by less takes nobody who beats. The interval bounds neither,
        # for a short one would take each jitter of a busy loop for a fault, and a long one overlook what kills agents.
        self._tolerance = ttl / 3
        self.length = max(interval, ttl / 3)
        self._deadline = deadline
        self._last: tuple[float, Sequence[datetime]] | None = None
        self._store_failed = False
        self._began = 0.0
        self._until: float | None = None

    def store_failed(self) -> None:
        """Take note that the store failed."""
        self._store_failed = True

    def reason(self, now: float, held: float, store_times: Sequence[datetime]) -> str | None:
        """Return why agents may have been kept from beating since the last call, if they may.

        Args:
            now: The instant.
            held: Seconds for which the reaper was held up since the last call.
            store_times: The time of each of the store's servers, in an order that stays while the servers do.
        """
        failed, self._store_failed = self._store_failed, False
        last, self._last = self._last, (now, store_times)
        stepped = 0.0 if last is None else _longest_step(last[1], store_times, now - last[0])
        if failed:
            return "the store had failed"
        if abs(stepped) > self._tolerance:
            return f"the store's clock was stepped by {stepped:+.1f} s"
        if held > self._tolerance:
            return f"the reaper was held up for {held:.1f} s"
        return None

    def begin(self, now: float) -> None:
        """Give `length` seconds from now on."""
        if self._until is None:
            self._began = now
        self._until = now + self.length

    def left(self, now: float) -> float:
        """Return the seconds of grace that are left; 0 where there is none."""
        if self._until is None:
            return 0.0
        left = min(self._until, self._began + self._deadline) - now
        if left <= 0:
            self._until = None
        return max(left, 0.0)


def _longest_step(before: Sequence[datetime], after: Sequence[datetime], elapsed: float) -> float:
    """Return by how many seconds one of the clocks was stepped at most; 0 where the servers are not the same ones."""
    if len(before) != len(after):
        return 0.0
    steps = ((later - earlier).total_seconds() - elapsed for earlier, later in zip(before, after, strict=True))
    return max(steps, key=abs)


class Hold:
    """Holds back a sweep that would take too large a part of the live fleet at once, for a limited time."""

    def __init__(self, max_fraction: float, deadline: float) -> None:
        """Hold back where more than `max_fraction` of the live agents are stale, for at most `deadline` seconds."""
        self._max_fraction = max_fraction
        self._deadline = deadline
        self._since: float | None = None

    @property
    def holding(self) -> bool:
        """Whether sweeps are being held back."""
        return self._since is not None

    def holds(self, now: float, stale: int, live: int) -> bool:
        """Tell whether the sweep is to be held back."""
        if stale <= self._max_fraction * live:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since < self._deadline

    def swept(self) -> None:
        """Take note that a sweep went ahead."""
        self._since = None

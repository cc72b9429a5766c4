"""When a sweep would be unfair: agents that had no chance to send a heartbeat are not to be marked offline for it."""

from __future__ import annotations

from datetime import datetime


class Grace:
    """Finds out that agents may have been kept from beating, and gives them one interval to do so.

    Kept from beating: the reaper itself was held (as was, perhaps, all of its host), the store was out of reach, or the
    store's clock was stepped, so that every heartbeat looks older than it is. Times are seconds of one monotonic clock.
    """

    def __init__(self, interval: float, deadline: float) -> None:
        """Give `interval` seconds of grace, again and again where needed, but never more than `deadline` on end."""
        self._interval = interval
        self._deadline = deadline
        self._last: tuple[float, datetime] | None = None
        self._store_failed = False
        self._began = 0.0
        self._until: float | None = None

    def store_failed(self) -> None:
        """Take note that the store failed."""
        self._store_failed = True

    def reason(self, now: float, late: float, store_time: datetime) -> str | None:
        """Return why agents may have been kept from beating since the last call, if they may.

        Args:
            now: The instant.
            late: How much later than planned the sweep begins.
            store_time: The store's time.
        """
        failed, self._store_failed = self._store_failed, False
        last, self._last = self._last, (now, store_time)
        stepped = 0.0 if last is None else (store_time - last[1]).total_seconds() - (now - last[0])
        if failed:
            return "the store had failed"
        if abs(stepped) > self._interval:
            return f"the store's clock was stepped by {stepped:+.0f} s"
        if late > self._interval:
            return f"the reaper was held for {late:.0f} s"
        return None

    def begin(self, now: float) -> None:
        """Give one interval from now on."""
        if self._until is None:
            self._began = now
        self._until = now + self._interval

    def left(self, now: float) -> float:
        """Return the seconds of grace that are left; 0 where there is none."""
        if self._until is None:
            return 0.0
        left = min(self._until, self._began + self._deadline) - now
        if left <= 0:
            self._until = None
        return max(left, 0.0)


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

"""A clock that a test controls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """The real time until a test moves or stops it. Call it for the current instant.

    Pass it to anything that takes a `clock`: `MemoryRegistry`, `SQLiteRegistry` and custom backends.
    """

    def __init__(self) -> None:
        self._offset = timedelta(0)
        self._stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        """Return the current instant, in UTC."""
        return self._stopped_at or datetime.now(UTC) + self._offset

    def advance(self, by: float | timedelta) -> None:
        """Move the clock forward by seconds, or back if negative; a stopped clock stays stopped."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if self._stopped_at is None:
            self._offset += step
        else:
            self._stopped_at += step

    def stop(self, at: datetime | None = None) -> None:
        """Stop the clock at an instant, by default the current one; afterwards only `advance` moves it."""
        self._stopped_at = at or self()

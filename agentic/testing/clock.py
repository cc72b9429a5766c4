"""A clock that a test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """The real time, until a test moves or stops it; call it for the current instant.

    For everything that takes a `clock`: `MemoryRegistry`, `SQLiteRegistry` and backends of your own.
    """

    def __init__(self) -> None:
        self._offset = timedelta(0)
        self._stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        """Return the current instant, in UTC."""
        return self._stopped_at or datetime.now(UTC) + self._offset

    def advance(self, by: float | timedelta) -> None:
        """Move the clock forward by so many seconds, or back where they are negative; a stopped one stays stopped."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if self._stopped_at is None:
            self._offset += step
        else:
            self._stopped_at += step

    def stop(self, at: datetime | None = None) -> None:
        """Stop the clock at an instant, by default at the current one; from then on only `advance` moves it."""
        self._stopped_at = at or self()

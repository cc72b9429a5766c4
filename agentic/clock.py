"""Instants and durations: their text form, their validation, and the boundary between alive and stale."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from agentic.errors import ConfigurationError
from agentic.options import shown_number
from agentic.text import plain, type_name

Clock = Callable[[], datetime]
"""Returns the current instant as an aware `datetime`."""

NEVER = datetime.min.replace(tzinfo=UTC)
"""The year 1, which Go writes for a time that was never set; older than any heartbeat."""

_CENTURY = 36_525 * 86_400.0


def system_clock() -> datetime:
    """Return the host's wall clock, in UTC."""
    return datetime.now(UTC)


def read(clock: Clock) -> datetime:
    """Return the current instant of a clock, in UTC.

    Raises:
        ConfigurationError: The clock did not return an aware `datetime`.
    """
    now = clock()
    if type(now) is datetime and now.tzinfo is UTC:
        return now  # Hot path.
    if not isinstance(now, datetime) or now.utcoffset() is None:
        raise ConfigurationError(f"clock: must return an aware datetime, got {type_name(now)}")
    return to_utc(now)


def to_utc(instant: datetime) -> datetime:
    """Convert an instant to UTC. Near the limits of `datetime`, return the closest instant that UTC can represent."""
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return NEVER if instant.year == 1 else datetime.max.replace(tzinfo=UTC)


def format_instant(instant: datetime) -> str:
    """Format a UTC instant as `2026-11-23T08:00:00.123456Z`. The width is fixed, so text order is time order."""
    return instant.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_instant(text: str) -> datetime:
    """Parse an RFC 3339 time to a UTC instant, rounded to microseconds.

    Raises:
        ValueError: The text is not an RFC 3339 time, or has no offset.
    """
    return checked_utc(msgspec.convert(text, datetime))


def checked_utc(instant: datetime) -> datetime:
    """Convert an instant to UTC.

    Raises:
        ValueError: It has no time zone.
    """
    if instant.tzinfo is None:
        raise ValueError(f"{instant} has no time zone")
    return to_utc(instant)


def duration(value: float | timedelta, name: str) -> timedelta:
    """Convert seconds or a `timedelta` to a `timedelta`; a value above `timedelta.max` becomes `timedelta.max`.

    Raises:
        ConfigurationError: It is not a number, not finite, or negative; the message begins with `name`.
    """
    if isinstance(value, timedelta):
        if value < timedelta(0):
            raise ConfigurationError(f"{name} must not be negative, got {shown_number(value.total_seconds())}")
        return value
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ConfigurationError(f"{name} must be seconds or a timedelta, got {type_name(value)}")
    try:
        seconds = float(number)
    except OverflowError:  # An int above 10**308.
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ConfigurationError(f"{name} must be finite, got {shown_number(number)}")
    if seconds < 0:
        raise ConfigurationError(f"{name} must not be negative, got {shown_number(number)}")
    return timedelta(seconds=seconds) if seconds < timedelta.max.total_seconds() else timedelta.max


def positive_seconds(value: float | timedelta, name: str) -> float:
    """Convert a positive duration to float seconds; a value above a century becomes a century.

    Raises:
        ConfigurationError: As in `duration`, or it is shorter than a microsecond.
    """
    seconds = duration(value, name).total_seconds()
    if seconds == 0:
        raise ConfigurationError(f"{name} must be greater than 0, and at least a microsecond")
    return min(seconds, _CENTURY)


def after(now: datetime, seconds: float | None) -> datetime | None:
    """Return the instant `seconds` after `now`; None for None, or beyond the year 9999."""
    if seconds is None:
        return None
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError:
        return None


def is_stale(last_heartbeat: datetime, now: datetime, ttl: timedelta) -> bool:
    """Return whether a heartbeat is older than `ttl`; one exactly `ttl` old is not stale."""
    return now - last_heartbeat > ttl


def stale_before(now: datetime, ttl: timedelta) -> datetime:
    """Return the instant before which heartbeats are stale: `is_stale` for stores that compare text."""
    try:
        return now - ttl
    except OverflowError:
        return NEVER

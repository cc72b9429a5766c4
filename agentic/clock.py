"""Instants and durations: one text form, one check of durations, one boundary between alive and stale."""

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
"""The year 1, which Go writes for a time that was never set: older than any heartbeat."""

_CENTURY = 36_525 * 86_400.0


def system_clock() -> datetime:
    """Return the host's wall clock, in UTC."""
    return datetime.now(UTC)


def read(clock: Clock) -> datetime:
    """Return the instant that a clock shows, in UTC.

    Raises:
        ConfigurationError: It returned something else than an aware `datetime`.
    """
    now = clock()
    if not isinstance(now, datetime) or now.utcoffset() is None:
        raise ConfigurationError(f"clock: must return an aware datetime, got {type_name(now)}")
    return to_utc(now)


def to_utc(instant: datetime) -> datetime:
    """Return the same instant in UTC, or the nearest that UTC can hold, at the very ends of the calendar."""
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return NEVER if instant.year == 1 else datetime.max.replace(tzinfo=UTC)


def format_instant(instant: datetime) -> str:
    """Return a UTC instant as `2026-11-23T08:00:00.123456Z`: of fixed width, so that text order is time order."""
    return instant.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_instant(text: str) -> datetime:
    """Return the UTC instant that an RFC 3339 text names, rounded to microseconds.

    Raises:
        ValueError: The text is no RFC 3339 time, or has no offset.
    """
    return checked_utc(msgspec.convert(text, datetime))


def checked_utc(instant: datetime) -> datetime:
    """Return the same instant in UTC.

    Raises:
        ValueError: It has no offset.
    """
    if instant.tzinfo is None:
        raise ValueError(f"{instant} has no time zone")
    return to_utc(instant)


def duration(value: float | timedelta, name: str) -> timedelta:
    """Return a duration given as float seconds or as a `timedelta`; one too long for a `timedelta` becomes the longest.

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
    """Return a duration that must be longer than nothing, in float seconds; a century where it is longer than that.

    Raises:
        ConfigurationError: As `duration` does, and for less than a microsecond.
    """
    seconds = duration(value, name).total_seconds()
    if seconds == 0:
        raise ConfigurationError(f"{name} must be greater than 0, and at least a microsecond")
    return min(seconds, _CENTURY)


def is_stale(last_heartbeat: datetime, now: datetime, ttl: timedelta) -> bool:
    """Tell whether a heartbeat is older than `ttl`; one exactly `ttl` old is not."""
    return now - last_heartbeat > ttl


def stale_before(now: datetime, ttl: timedelta) -> datetime:
    """Return the instant before which a heartbeat is stale: `is_stale` for a store that compares text."""
    try:
        return now - ttl
    except OverflowError:
        return NEVER

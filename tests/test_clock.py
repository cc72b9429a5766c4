"""Durations and instants."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic import AgentInfo, ConfigurationError, MemoryRegistry, SQLiteRegistry
from agentic.clock import (
    NEVER,
    duration,
    format_instant,
    is_stale,
    parse_instant,
    positive_seconds,
    stale_before,
    system_clock,
)

instants = st.datetimes(timezones=st.just(UTC))
spans = st.timedeltas(min_value=timedelta(0))


@given(instants)
def test_a_formatted_instant_is_parsed_to_the_same_instant(instant: datetime) -> None:
    assert parse_instant(format_instant(instant)) == instant
    assert len(format_instant(instant)) == 27


@given(instants, instants)
def test_the_order_of_texts_is_the_order_of_times(one: datetime, other: datetime) -> None:
    assert (format_instant(one) < format_instant(other)) == (one < other)


@given(instants, instants, spans)
def test_is_stale_and_stale_before_agree(heartbeat: datetime, now: datetime, ttl: timedelta) -> None:
    assert is_stale(heartbeat, now, ttl) == (heartbeat < stale_before(now, ttl))


@pytest.mark.parametrize(
    "wrong",
    [
        math.nan,
        math.inf,
        -math.inf,
        -1,
        -1e-12,
        -1e300,
        True,
        "1",
        None,
        timedelta(-1),
        10**400,
        -(10**5000),
        Decimal(1),
        1j,
    ],
    ids=type,
)
def test_an_invalid_duration_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="^pause must") as caught:
        duration(wrong, "pause")  # type: ignore[arg-type]
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("zero", [0, 0.0, timedelta(0), 1e-9])
def test_a_positive_duration_is_greater_than_zero(zero: float) -> None:
    assert duration(zero, "pause") == timedelta(0)
    with pytest.raises(ConfigurationError, match="pause must be greater than 0"):
        positive_seconds(zero, "pause")


def test_durations_are_seconds_or_timedeltas() -> None:
    assert duration(1.5, "x") == duration(timedelta(seconds=1.5), "x") == timedelta(milliseconds=1500)
    assert duration(1e300, "x") == duration(10**300, "x") == duration(timedelta.max, "x") == timedelta.max
    assert positive_seconds(timedelta(minutes=1), "x") == 60.0


@pytest.mark.parametrize("text", ["", "x", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", "2026-01-01"])
def test_a_text_that_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_instant(text)


def test_the_system_clock_is_aware_and_in_utc() -> None:
    assert system_clock().tzinfo is UTC
    assert NEVER == datetime(1, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("clock", [lambda: None, lambda: 5, datetime.now, lambda: "2026-01-01T00:00:00Z"])
async def test_a_clock_that_returns_no_aware_instant_is_an_error_of_the_call(
    clock: Callable[[], datetime], tmp_path: Path
) -> None:
    for registry in (MemoryRegistry(clock=clock), SQLiteRegistry(tmp_path / "r.db", clock=clock)):
        async with registry:
            with pytest.raises(ConfigurationError, match="^clock: must return an aware datetime"):
                await registry.register(AgentInfo("a"))

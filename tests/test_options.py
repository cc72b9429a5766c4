"""Checks of options, and text made safe for messages."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from agentic import ConfigurationError
from agentic.options import count, flag, flag_of, fraction, function, text
from agentic.text import printable, type_name


@pytest.mark.parametrize(
    ("check", "right"),
    [
        (count, [1, 16, 2**31 - 1]),
        (fraction, [1, 1.0, 0.5, 1e-6]),
        (flag, [True, False]),
        (function, [print, lambda: None, type]),
        (text, ["x", "é", "x" * 4096]),
    ],
)
def test_right_options_come_back_as_they_are(check: Callable[[Any, str], object], right: list[object]) -> None:
    for value in right:
        assert check(value, "option") == value


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (count, [0, -1, 2**31, -(10**5000), 10**5000, True, 1.0, "1", None, [], Decimal(1)]),
        (fraction, [0, -0.1, 1.1, 1e-9, float("nan"), float("inf"), True, "0.5", None, 10**5000, 1j]),
        (flag, [0, 1, "yes", None, []]),
        (function, [5, None, "print"]),
        (text, ["", "x" * 4097, "\ud800", b"x", None, 5, ["x"]]),
    ],
)
def test_wrong_options_are_named_in_a_short_message(check: Callable[[Any, str], object], wrong: list[object]) -> None:
    for value in wrong:
        with pytest.raises(ConfigurationError, match="^option: ") as caught:
            check(value, "option")
        assert len(str(caught.value)) < 120


def test_a_flag_may_be_said_in_words() -> None:
    assert [flag_of(word, "option") for word in ("yes", "true", "no", "false")] == [True, True, False, False]
    for wrong in ("", "1", "YES", "on"):
        with pytest.raises(ConfigurationError, match="^option: must be yes, no, true or false"):
            flag_of(wrong, "option")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("a\nb\x1b[31m\0\u202e\ud800", r"a\nb\x1b[31m\x00\u202e\ud800"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "..."),
        ("\0" * 1000, (r"\x00" * 50) + "..."),
    ],
)
def test_text_in_a_message_is_printable_and_bounded(given: str, shown: str) -> None:
    assert printable(given) == shown


def test_the_name_of_a_type_is_bounded_too() -> None:
    assert type_name(type("x\n" * 1000, (), {})()) == r"x\n" * 20 + "..."
    assert printable("\n" * 300, longest=None) == r"\n" * 300

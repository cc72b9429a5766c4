"""Incarnations: which start of an agent a call or a record belongs to.

An incarnation is an integer of 16 digits below 2**53, which is exact in Lua, JSON and SQL. A later start has a higher
one. In a record, 0 means that a program wrote it that does not know incarnations; in a call, that any start may make
it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import randrange
from typing import Final

from agentic.errors import AgentReplacedError, InvalidAgentError, RegistryError
from agentic.options import shown_number
from agentic.text import plain, type_name

LOWEST: Final = 10**15
"""In microseconds since 1970: 2001-09-09. All higher ones have 16 digits, so that text order is number order."""

END: Final = 2**53
SPREAD: Final = 4096
"""Random distance of a new incarnation, so that two starts differ even if the store has lost its counter."""

_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR: Final = timedelta(days=366) // _MICROSECOND


def valid_incarnation(value: object) -> int:
    """Return an incarnation as a plain `int`, or 0.

    Raises:
        InvalidAgentError: It is neither 0 nor an int of 16 digits below 2**53.
    """
    if type(value) is int and (not value or LOWEST <= value < END):
        return value  # Hot path.
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidAgentError("incarnation", f"incarnation: must be an int, got {type_name(value)}")
    if number and not LOWEST <= number < END:
        raise InvalidAgentError(
            "incarnation", f"incarnation: must be 0 or one that `register` returned, got {shown_number(number)}"
        )
    return number


def latest(now: datetime) -> int:
    """Return the highest incarnation that is believed: that of a clock a year ahead of the store's."""
    return min((now - _EPOCH) // _MICROSECOND + _YEAR, END - 1)


def believed(stored: object, now: datetime) -> int:
    """Return the stored incarnation, or 0 if it is malformed or more than a year ahead of the store's clock."""
    return stored if type(stored) is int and LOWEST <= stored <= latest(now) else 0


def random_distance() -> int:
    """Return a random number for `next_incarnation`."""
    return randrange(SPREAD)


def next_incarnation(counter: int, stored: int, now: datetime, distance: int) -> int:
    """Return the incarnation of a new start.

    Args:
        counter: The highest one that the store has given out, as stored; 0 if it does not know. It counts only if it is
            believed.
        stored: The one in the agent's record; 0 if there is none.
        now: The store's current time.
        distance: From `random_distance`.
    """
    return max(believed(counter, now), stored, (now - _EPOCH) // _MICROSECOND, LOWEST) + 1 + distance


def admitted(agent_id: str, given: int, stored: int, now: datetime) -> bool | RegistryError:
    """Decide whether a call may change a record.

    Args:
        agent_id: The agent.
        given: The incarnation of the call; 0 for any start.
        stored: The incarnation in the record, as returned by `believed`; 0 if there is no record.
        now: The store's current time.

    Returns:
        True if it may; False if the record is of an earlier start, so that it counts as absent; or the error.
    """
    if not given:
        return True
    if given > latest(now):
        return too_far_ahead()
    return AgentReplacedError(agent_id, stored) if stored > given else stored in (0, given)


def too_far_ahead() -> InvalidAgentError:
    """Return the error for an incarnation that no start can have yet."""
    return InvalidAgentError("incarnation", "incarnation: is more than a year ahead of the store's clock")

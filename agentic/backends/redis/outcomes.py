"""Translate the outcomes of requests into results and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentic.agent import USUAL_BEAT, Beat
from agentic.backends.redis.scripts import ABSENT, AHEAD, CORRUPT, DONE, REWRITTEN, TOO_LARGE, WAS_OFFLINE
from agentic.errors import AgentReplacedError, BackendError, BackendRejectedError, CorruptRecordError, RegistryError
from agentic.incarnations import too_far_ahead
from agentic.text import printable
from agentic.validation import too_large
from agentic.wire import decode_drain


def facts(results: Sequence[Any], ids: Sequence[str]) -> list[bool | RegistryError]:
    """Return for each agent whether it exists, or the error of that agent."""
    if results.count(DONE) == len(results):
        return [True] * len(results)
    return [
        result == DONE if result in (DONE, ABSENT) else failure(result, agent_id)
        for result, agent_id in zip(results, ids, strict=True)
    ]


def beats_of(results: Sequence[Any], beats: Sequence[tuple[str, int]]) -> list[Beat | RegistryError | None]:
    """Return for each agent what its heartbeat found, None if it does not exist, or the error of that agent."""
    if results.count(DONE) == len(results):
        return [USUAL_BEAT] * len(results)
    return [_beat(result, agent_id) for result, (agent_id, _) in zip(results, beats, strict=True)]


def _beat(result: Any, agent_id: str) -> Beat | RegistryError | None:
    if result == DONE:
        return USUAL_BEAT
    number, drain = result if isinstance(result, list) and result[0] >= DONE else (result, None)
    if isinstance(number, int) and number >= DONE:
        flags = number - DONE
        draining = None if drain is None else decode_drain(drain)
        return Beat(was_offline=bool(flags & WAS_OFFLINE), draining=draining, rewritten=bool(flags & REWRITTEN))
    return None if result == ABSENT else failure(result, agent_id)


def failure(result: Any, agent_id: str) -> RegistryError:
    """Return the error for a failed outcome of one agent."""
    if isinstance(result, BackendError):
        return result
    if isinstance(result, list):
        return too_large(result[1]) if result[0] == TOO_LARGE else AgentReplacedError(agent_id, int(result[1]))
    if result == AHEAD:
        return too_far_ahead()
    if result == CORRUPT:
        shown = printable(agent_id)
        return CorruptRecordError(f"the record of agent '{shown}' is corrupt: it is not valid agent JSON", agent_id)
    return BackendRejectedError(f"the key of agent '{printable(agent_id)}' holds another type of value than a string")


def raise_any(outcomes: list[Any]) -> list[Any]:
    """Return the outcomes; raise the first error among them."""
    for outcome in outcomes:
        if isinstance(outcome, BackendError):
            raise outcome
    return outcomes

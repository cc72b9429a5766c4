"""Translate the outcomes of requests into results and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentic.backends.redis.scripts import ABSENT, CORRUPT, DONE
from agentic.errors import BackendError, BackendRejectedError, CorruptRecordError, RegistryError
from agentic.text import printable
from agentic.validation import too_large


def facts(results: Sequence[Any], ids: Sequence[str]) -> list[bool | RegistryError]:
    """Return for each agent whether it exists, or the error of that agent."""
    if results.count(DONE) == len(results):
        return [True] * len(results)
    return [
        result == DONE if result in (DONE, ABSENT) else failure(result, agent_id)
        for result, agent_id in zip(results, ids, strict=True)
    ]


def failure(result: Any, agent_id: str) -> RegistryError:
    """Return the error for a failed outcome of one agent."""
    if isinstance(result, BackendError):
        return result
    if isinstance(result, list):
        return too_large(result[1])
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

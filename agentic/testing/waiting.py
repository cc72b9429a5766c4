"""Waiting for a condition, in place of sleeping for luck."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

from agentic import AgentNotFoundError, AgentRegistry, BackendUnavailableError


async def holds(predicate: Callable[[], bool | Awaitable[bool]]) -> bool:
    """Ask a predicate, whether or not its answer has to be awaited."""
    answer = predicate()
    return await answer if inspect.isawaitable(answer) else bool(answer)


async def wait_until(
    predicate: Callable[[], bool | Awaitable[bool]], description: str, *, within: float = 20.0
) -> None:
    """Poll until the predicate holds; fail with the description when it does not within so many seconds."""
    end = time.monotonic() + within
    while True:
        if await holds(predicate):
            return
        if time.monotonic() > end:
            raise AssertionError(f"did not come true within {within:g} s: {description}")
        await asyncio.sleep(0.005)


def is_there(registry: AgentRegistry, agent_id: str = "a") -> Callable[[], Awaitable[bool]]:
    """Return a predicate: an agent is registered, and the store says so."""

    async def found() -> bool:
        try:
            await registry.get(agent_id)
        except (AgentNotFoundError, BackendUnavailableError):
            return False
        return True

    return found

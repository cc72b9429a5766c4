"""The calls of a registry and their primitives, which tests make hang, fail or answer late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from agentic.agent import AgentInfo
from agentic.findings import Finding
from agentic.registry import AgentRegistry

Call = Callable[[AgentRegistry], Awaitable[object]]


async def scan(registry: AgentRegistry) -> list[AgentInfo]:
    """Return all agents from `scan`."""
    return [agent async for agent in registry.scan()]


async def diagnose(registry: AgentRegistry) -> list[Finding]:
    """Return all findings from `diagnose`."""
    return [finding async for finding in registry.diagnose()]


CALLS: dict[str, tuple[str, Call]] = {
    "register": ("insert", lambda registry: registry.register(AgentInfo("a"))),
    "heartbeat": ("touch", lambda registry: registry.heartbeat("a")),
    "heartbeat_many": ("touch", lambda registry: registry.heartbeat_many(["a", "b"])),
    "get": ("fetch", lambda registry: registry.get("a")),
    "update": ("patch", lambda registry: registry.update("a", name="x")),
    "deregister": ("delete", lambda registry: registry.deregister("a")),
    "drain": ("set_drains", lambda registry: registry.drain("a", reason="r")),
    "resume": ("set_drains", lambda registry: registry.resume("a")),
    "drains": ("drains", lambda registry: registry.drains()),
    "list": ("scan", lambda registry: registry.list()),
    "scan": ("scan", scan),
    "page": ("page", lambda registry: registry.page()),
    "reap": ("sweep", lambda registry: registry.reap(60)),
    "flush": ("clear", lambda registry: registry.flush()),
    "store_time": ("times", lambda registry: registry.store_time()),
    "diagnose": ("diagnose", diagnose),
}
"""Each call, with the primitive it uses."""


def run_first(registry: AgentRegistry, primitive: str, action: Callable[[], Awaitable[object]]) -> Callable[[], None]:
    """Run an action at the start of a primitive of the registry's backend; return a function that undoes this."""
    backend = registry.backend
    original = getattr(backend, primitive)

    async def acting_first(*args: Any) -> Any:
        await action()
        return await original(*args)

    backend.is_immediate = False
    setattr(backend, primitive, acting_first)
    return lambda: setattr(backend, primitive, original)

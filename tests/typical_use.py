"""What users write: accepted by every type checker, and run by the tests as it stands."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from agentic import (
    AgentInfo,
    AgentNotFoundError,
    AgentRegistry,
    AgentStatus,
    BackendUnavailableError,
    Beat,
    Drain,
    Reaper,
    RegistryConfig,
    open_registry,
)


async def agents(registry: AgentRegistry) -> list[str]:
    """Register agents in every form that is accepted, and change them."""
    await registry.register(AgentInfo("positional", "a name", ["go", "python"], "busy"))
    await registry.register(AgentInfo(id="tuple", capabilities=("go",), status=AgentStatus.BUSY, max_load=3))
    await registry.register(AgentInfo("dict", metadata={"region": "eu"}))
    changed: AgentInfo = await registry.update("dict", status="available", capabilities=["c"], current_load=1)
    status: AgentStatus = changed.status
    capabilities: tuple[str, ...] = changed.capabilities
    fields: dict[str, object] = changed.to_dict()
    assert (status, capabilities, fields["id"]) == ("available", ("c",), "dict")
    absent: set[str] = await registry.heartbeat_many(["positional", "nobody"])
    assert absent == {"nobody"}
    try:
        await registry.get("nobody")
    except AgentNotFoundError as error:
        absent.discard(error.agent_id)
    except BackendUnavailableError:
        raise
    assert not absent
    found = await registry.list()
    return sorted(agent.id for agent in found if "go" in agent.capabilities)


async def sessions(registry: AgentRegistry) -> None:
    """Keep an agent alive, with a reaper beside it."""
    marked: list[str] = []

    async def report(ids: list[str]) -> None:
        marked.extend(ids)

    async with Reaper(registry, ttl=30, interval=timedelta(seconds=10), on_reaped=report, max_fraction=0.5):
        async with registry.session(AgentInfo("worker"), interval=5) as session:
            await session.update(status="busy", current_load=1)
            assert session.healthy
            await session.unready("loading")
            await session.ready()
            order: Drain = await registry.drain("worker", reason="new disk", duration=timedelta(minutes=5))
            beat: Beat = await registry.heartbeat("worker", incarnation=session.incarnation)
            assert beat.draining == order
            assert await registry.resume("worker")
            assert not session.replaced.is_set()
            assert (await registry.get("worker")).status is AgentStatus.BUSY


async def main(folder: Path) -> list[str]:
    """Open registries in every way."""
    async with open_registry(folder / "registry.db", ttl=60, timeout=timedelta(seconds=20)) as registry:
        await sessions(registry)
        found = await agents(registry)
    async with open_registry({"backend": "memory", "ttl": "60"}) as registry:
        assert [agent async for agent in registry.scan()] == []
    async with open_registry(RegistryConfig(backend="memory"), wait=1.5):
        pass
    registry = await open_registry("memory://", stale_after=5)
    reaped: list[str] = await registry.reap(30, on_marked=print)
    await registry.aclose()
    assert not reaped
    return found

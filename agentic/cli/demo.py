"""The demo: a small fleet registers and sends heartbeats; some agents fall silent and go offline; one comes back."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Final

import anyio

from agentic.agent import AgentInfo, AgentStatus
from agentic.config import StoreChoice
from agentic.errors import BackendRejectedError, RegistryError
from agentic.reaper import Reaper
from agentic.registry import AgentRegistry

TTL: Final = 1.5
"""Seconds of silence after which the demo's reaper takes an agent offline."""

INTERVAL: Final = 0.4
ARRIVAL: Final = 1.7
"""Seconds within which the whole fleet registers."""

MAX_WAIT: Final = 8.0
SKILLS: Final = ("search", "code", "review", "translate", "plan", "summarise")

Report = Callable[[str, str], None]
"""Shows one event: the agent, and what happened."""


@dataclass
class Summary:
    """What the demo did and saw."""

    registered: int = 0
    silent: set[str] = field(default_factory=set)
    taken_offline: set[str] = field(default_factory=set)
    came_back: set[str] = field(default_factory=set)
    left_over: list[str] = field(default_factory=list)

    def problem(self) -> str | None:
        """Return what went wrong, or None."""
        if self.taken_offline != self.silent:
            return f"{sorted(self.silent)} fell silent, but {sorted(self.taken_offline)} were taken offline"
        if not self.came_back:
            return "no agent came back"
        return f"agents were left over: {self.left_over}" if self.left_over else None


def scratch_registry(store: StoreChoice) -> AbstractContextManager[AgentRegistry]:
    """Make a registry that is separate from the store's real agents, so that the demo's reaper does not mark them.

    If the demo is killed, its agents are gone after a minute.
    """
    return store.kind.scratch(**store.with_options(ttl=60, stale_after=TTL).options)


async def check_rights(registry: AgentRegistry) -> None:
    """Register and remove an agent, to check that the demo may write.

    Raises:
        BackendError: That failed. If the store refused it, the message names the store.
    """
    probe = AgentInfo("probe")
    try:
        await registry.register(probe)
        await registry.deregister(probe.id)
    except BackendRejectedError as error:
        raise BackendRejectedError(f"{error}; the demo has to write in {registry.store}") from error


async def run_demo(registry: AgentRegistry, size: int, report: Report) -> Summary:
    """Run the demo for about five seconds, whatever its size, and leave the registry empty.

    Args:
        registry: An open registry that only the demo uses.
        size: How many agents, at least 3; a third of them fall silent.
        report: Shows one event.
    """
    digits = max(2, len(str(size)))
    ids = [f"agent-{number:0{digits}}" for number in range(1, size + 1)]
    summary = Summary(silent=set(ids[2::3]))
    all_offline = anyio.Event()

    def on_reaped(reaped: list[str]) -> None:
        for agent_id in sorted(reaped):
            summary.taken_offline.add(agent_id)
            report(agent_id, "silent for too long: taken offline by the reaper")
        if summary.taken_offline >= summary.silent:
            all_offline.set()

    try:
        async with (
            Reaper(registry, interval=TTL / 5, on_reaped=on_reaped),
            anyio.create_task_group() as tasks,
        ):
            for agent_id in ids:
                summary.registered += 1
                tasks.start_soon(_crash if agent_id in summary.silent else _work, registry, agent_id, report)
                await anyio.sleep(min(0.1, ARRIVAL / size))
            with anyio.move_on_after(MAX_WAIT):
                await all_offline.wait()
            await _come_back(registry, min(summary.silent), summary, report)
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()
        report("demo", "the sessions ended and deregistered their agents")
        for agent_id in summary.silent:
            await registry.deregister(agent_id)
        summary.left_over = [agent.id for agent in await registry.list()]
    finally:
        # Agents that cannot be removed now are gone after a minute, or with the scratch file.
        with anyio.move_on_after(registry.timeout, shield=True), suppress(RegistryError):
            await registry.flush()
    return summary


def _agent(agent_id: str) -> AgentInfo:
    return AgentInfo(agent_id, name="demo agent", capabilities=tuple(random.sample(SKILLS, k=2)), max_load=3)


async def _work(registry: AgentRegistry, agent_id: str, report: Report) -> None:
    """Alternate between busy and available in a session."""
    async with registry.session(_agent(agent_id), interval=INTERVAL) as session:
        report(agent_id, "registered by its session")
        while True:
            await anyio.sleep(random.uniform(0.5, 2.5))
            load = random.randint(1, 3)
            await session.update(status=AgentStatus.BUSY, current_load=load)
            report(agent_id, f"busy with {load} of 3")
            await anyio.sleep(random.uniform(0.5, 2.0))
            await session.update(status=AgentStatus.AVAILABLE, current_load=0)
            report(agent_id, "available")


async def _crash(registry: AgentRegistry, agent_id: str, report: Report) -> None:
    """Register without a session, send two heartbeats, and stop without deregistering, like a crashed process."""
    await registry.register(_agent(agent_id))
    report(agent_id, "registered")
    for _ in range(2):
        await anyio.sleep(INTERVAL)
        await registry.heartbeat(agent_id)
    report(agent_id, "crashed: no heartbeat from now on")


async def _come_back(registry: AgentRegistry, agent_id: str, summary: Summary, report: Report) -> None:
    await registry.heartbeat(agent_id)
    if (await registry.get(agent_id)).status is AgentStatus.AVAILABLE:
        summary.came_back.add(agent_id)
        report(agent_id, "sent a heartbeat: available again")

"""Calls on the whole fleet: `list`, `scan` and `flush`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from agentic.agent import AgentInfo
from agentic.registry import AgentRegistry
from agentic.testing.contract.base import Contract, fill


class Fleet(Contract):
    """Many agents."""

    @pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
    async def test_list_and_scan_return_every_agent_once(self, registry: AgentRegistry, count: int) -> None:
        ids = await fill(registry, count)
        listed = await registry.list()
        assert sorted(agent.id for agent in listed) == sorted(ids)
        scanned = [agent async for agent in registry.scan()]
        assert sorted(agent.id for agent in scanned) == sorted(ids)
        assert sorted(listed, key=lambda agent: agent.id) == sorted(scanned, key=lambda agent: agent.id)

    async def test_a_scan_may_be_left_early(self, registry: AgentRegistry) -> None:
        await fill(registry, 2500)
        async with aclosing(registry.scan()) as agents:
            first = await anext(agents)
        assert (await registry.get(first.id)).id == first.id

    async def test_agents_that_stay_are_scanned_once_while_others_come_and_go(self, registry: AgentRegistry) -> None:
        staying = await fill(registry, 3000)
        seen: list[str] = []
        churned = 0
        async with aclosing(registry.scan()) as agents:
            async for agent in agents:
                seen.append(agent.id)
                if len(seen) % 300 == 0:
                    passing = [f"passing-{churned + n}" for n in range(400)]
                    churned += len(passing)
                    await asyncio.gather(*(registry.register(AgentInfo(i)) for i in passing))
                    await asyncio.gather(*(registry.deregister(i) for i in passing[:300]))
        assert churned > 2000
        assert len(seen) == len(set(seen))
        assert staying <= set(seen)

    async def test_flush_deletes_every_agent_and_counts_them(self, registry: AgentRegistry) -> None:
        await fill(registry, 1234)
        assert await registry.flush() == 1234
        assert await registry.list() == []
        assert await registry.flush() == 0
        await registry.register(AgentInfo("a"))
        assert [agent.id for agent in await registry.list()] == ["a"]

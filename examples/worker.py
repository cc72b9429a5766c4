"""A worker that is an agent: it tells the fleet when it is busy, and goes offline by itself should it die.

Run it as it stands: it works off five items and ends. The store comes from the AGENTIC_* variables, in memory when none
is set.
"""

from __future__ import annotations

import asyncio

from agentic import AgentInfo, AgentSession, AgentStatus, Reaper, open_registry


async def work(session: AgentSession, items: asyncio.Queue[str]) -> None:
    """Work off the queue, and say so while at it."""
    while not items.empty():
        item = items.get_nowait()
        await session.update(status=AgentStatus.BUSY, current_load=1)
        await asyncio.sleep(0.1)  # the work
        print(f"{session.agent.id}: {item} done")
        await session.update(status=AgentStatus.AVAILABLE, current_load=0)


async def report_lost(ids: list[str]) -> None:
    """Hear of agents that fell silent."""
    print(f"lost: {', '.join(ids)}")


async def main() -> None:
    """Run the worker, and a reaper beside it in the same task group."""
    items: asyncio.Queue[str] = asyncio.Queue()
    for number in range(1, 6):
        items.put_nowait(f"item {number}")

    async with open_registry() as registry, asyncio.TaskGroup() as tasks:
        reaping = tasks.create_task(Reaper(registry, ttl=30, on_reaped=report_lost).run())
        async with registry.session(AgentInfo("worker-1", capabilities=("items",), max_load=1)) as session:
            await work(session, items)
            print(f"fleet: {[f'{agent.id} {agent.status}' for agent in await registry.list()]}")
        reaping.cancel()


if __name__ == "__main__":
    asyncio.run(main())

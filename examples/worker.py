"""A worker that is an agent: it tells the fleet when it is busy, and goes offline by itself should it die.

Run it as it stands: it works off five items and ends; SIGTERM or Ctrl-C ends it after the item in hand. The store comes
from the AGENTIC_* variables, in memory when none is set; it may be late, and it may be away for a while.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from agentic import AgentInfo, AgentSession, AgentStatus, BackendUnavailableError, Reaper, open_registry


async def enter(stack: AsyncExitStack, stop: asyncio.Event) -> AgentSession | None:
    """Open a session, waiting for a store that is late; return None where the worker is to stop before that."""
    while not stop.is_set():
        try:
            async with AsyncExitStack() as entered:
                registry = await entered.enter_async_context(open_registry())
                await entered.enter_async_context(Reaper(registry, on_reaped=report_lost))
                # Left first: the agent is deregistered before the registry closes.
                agent = AgentInfo("worker-1", capabilities=("items",), max_load=1)
                session = await entered.enter_async_context(registry.session(agent))
                stack.push_async_exit(entered.pop_all())
                return session
        except BackendUnavailableError as error:
            print(f"waiting for the store: {error}")
            await asyncio.sleep(1)
    return None


async def report_lost(ids: list[str]) -> None:
    """Hear of agents that fell silent."""
    print(f"lost: {', '.join(ids)}")


async def report(session: AgentSession, status: AgentStatus, load: int) -> None:
    """Update the agent; a store that is away for now does not stop the work, and heartbeats go on by themselves."""
    try:
        await session.update(status=status, current_load=load)
    except BackendUnavailableError as error:
        print(f"not reported: {error}")


async def work(session: AgentSession, items: asyncio.Queue[str], stop: asyncio.Event) -> None:
    """Work off the queue, and report it, until there is no item left or the worker is to stop."""
    while not items.empty() and not stop.is_set():
        item = items.get_nowait()
        await report(session, AgentStatus.BUSY, 1)
        await asyncio.sleep(0.1)  # the work
        print(f"{session.agent.id}: {item} done")
        await report(session, AgentStatus.AVAILABLE, 0)


async def main() -> None:
    """Run the worker, with a reaper beside it."""
    stop = asyncio.Event()
    # Without a handler, SIGTERM ends the process at once: its agent stays until a reaper finds it silent.
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)

    items: asyncio.Queue[str] = asyncio.Queue()
    for number in range(1, 6):
        items.put_nowait(f"item {number}")

    async with AsyncExitStack() as stack:
        session = await enter(stack, stop)
        if session is not None:
            await work(session, items, stop)
            print(f"{session.agent.id}: {items.qsize()} items left")


if __name__ == "__main__":
    asyncio.run(main())

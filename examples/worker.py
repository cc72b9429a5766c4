"""A worker that is an agent: it tells the fleet when it is busy, and is marked offline should it die.

Run it as it stands: it works off five items and ends; SIGTERM or Ctrl-C ends it after the item in hand. The store comes
from the AGENTIC_* variables, in memory when none is set; it may be 30 seconds late, and it may be away for a while.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress

from agentic import AgentInfo, AgentSession, AgentStatus, BackendUnavailableError, Reaper, open_registry


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
        print(f"{item} done")
        await report(session, AgentStatus.AVAILABLE, 0)
    print(f"{items.qsize()} items left")


async def run(items: asyncio.Queue[str], ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Work in a session, with a reaper beside it."""
    # Two processes with one id would be one agent.
    agent = AgentInfo(f"worker-{socket.gethostname()}-{os.getpid()}", capabilities=("items",), max_load=1)
    async with (
        open_registry(wait=30) as registry,
        Reaper(registry, on_reaped=report_lost),
        registry.session(agent) as session,  # Left first: the agent is deregistered before the registry closes.
    ):
        ready.set()
        await work(session, items, stop)


async def main() -> None:
    """Run the worker until it is done or told to stop."""
    items: asyncio.Queue[str] = asyncio.Queue()
    for number in range(1, 6):
        items.put_nowait(f"item {number}")
    ready, stop = asyncio.Event(), asyncio.Event()
    working = asyncio.create_task(run(items, ready, stop))

    def leave() -> None:
        """End after the item in hand; at once while the store is not there yet."""
        stop.set()
        if not ready.is_set():
            working.cancel()

    # Without a handler, SIGTERM ends the process at once: its agent stays until a reaper finds it silent.
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, leave)
    with suppress(asyncio.CancelledError):
        await working


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main())

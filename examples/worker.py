"""A worker that is an agent: it reports when it is busy, and is marked offline if it dies.

Run it as it is: it processes five items and ends. On SIGTERM or Ctrl-C it takes no more work, finishes the current
item, or gives up after ten seconds, and then deregisters. The store comes from the AGENTIC_* variables, memory if none
is set. It may start 30 seconds late, and fail for a while.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import Unpack

from agentic import AgentInfo, AgentReplacedError, AgentSession, BackendUnavailableError, Reaper, open_registry
from agentic.agent import AgentChanges

GRACE = 10.0
"""Seconds for the current item after SIGTERM. Containers are usually killed after 30."""


async def report_lost(ids: list[str]) -> None:
    """Print which agents fell silent."""
    print(f"lost: {', '.join(ids)}")


async def report(session: AgentSession, **changes: Unpack[AgentChanges]) -> None:
    """Update the agent. An outage of the store does not stop the work, and the session retries its heartbeats."""
    try:
        await session.update(**changes)
    except (AgentReplacedError, BackendUnavailableError) as error:
        print(f"not reported: {error}")


async def work(session: AgentSession, items: asyncio.Queue[str], stop: asyncio.Event) -> None:
    """Process the queue, and report it, until no item is left or the worker must stop."""
    while not (items.empty() or stop.is_set() or session.replaced.is_set()):
        item = items.get_nowait()
        await report(session, status="busy", current_load=1)
        await asyncio.sleep(0.1)  # the work
        print(f"{item} done")
        await report(session, status="available", current_load=0)
    print(f"{items.qsize()} items left")


async def run(items: asyncio.Queue[str], ready: asyncio.Event, stop: asyncio.Event) -> None:
    """Work in a session, with a reaper beside it."""
    # A later process with the same id would replace this one.
    agent = AgentInfo(f"worker-{socket.gethostname()}-{os.getpid()}", capabilities=("items",), max_load=1)
    async with (
        open_registry(wait=30) as registry,
        Reaper(registry, on_reaped=report_lost),
        registry.session(agent) as session,  # Left first: the agent is deregistered before the registry closes.
    ):
        ready.set()
        working = asyncio.create_task(work(session, items, stop))
        ends = [asyncio.create_task(each.wait()) for each in (stop, session.replaced)]
        await asyncio.wait([working, *ends], return_when=asyncio.FIRST_COMPLETED)
        for each in ends:
            each.cancel()
        await finish(session, working)


async def finish(session: AgentSession, working: asyncio.Task[None]) -> None:
    """Take no more work, and let the current item end in time."""
    if not working.done() and not session.replaced.is_set():
        await report(session, unready="stopping")
    try:
        async with asyncio.timeout(GRACE):
            await working
    except TimeoutError:
        print(f"gave up the current item after {GRACE:g} s")


async def main() -> None:
    """Run the worker until it is done or told to stop."""
    items: asyncio.Queue[str] = asyncio.Queue()
    for number in range(1, 6):
        items.put_nowait(f"item {number}")
    ready, stop = asyncio.Event(), asyncio.Event()
    working = asyncio.create_task(run(items, ready, stop))

    def leave() -> None:
        """Stop; immediately if the store has not been reached yet."""
        stop.set()
        if not ready.is_set():
            working.cancel()

    # Without a handler, SIGTERM ends the process immediately: its agent stays until a reaper marks it offline.
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, leave)
    with suppress(asyncio.CancelledError):
        await working


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main())

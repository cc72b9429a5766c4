"""The demo on the screen: as lines, or as a live table."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from rich.console import Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from agentic.demo import Tell
from agentic.registry import AgentRegistry
from agentic.tables import fleet_lines
from agentic.terminal import out

Events: TypeAlias = MemoryObjectReceiveStream[tuple[str, str]]
"""Whom an event concerns, and what happened."""

SHOWN_EVENTS: Final = 6


@asynccontextmanager
async def shown(registry: AgentRegistry, *, live: bool) -> AsyncGenerator[Tell, None]:
    """Show the events of the demo while its body runs.

    One task writes them, apart from the sessions and callbacks that they come from: output that fails ends the demo
    and is not mistaken for a fault of theirs.

    Args:
        registry: Open, and for the demo alone.
        live: A table of the fleet, renewed in place, above the latest events; else one line for each event.
    """
    events, received = anyio.create_memory_object_stream[tuple[str, str]](math.inf)
    with received:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_show_table if live else _show_lines, registry, received)
            with events:
                yield lambda who, what: events.send_nowait((who, what))


async def _show_lines(registry: AgentRegistry, events: Events) -> None:
    started_at = anyio.current_time()
    async for who, what in events:
        out.print(f"{anyio.current_time() - started_at:6.2f} s  {who:10}  {what}")


async def _show_table(registry: AgentRegistry, events: Events) -> None:
    """Show the fleet, renewed several times a second, above the latest events."""
    latest: deque[Text] = deque(maxlen=SHOWN_EVENTS)
    with Live(console=out, auto_refresh=False, transient=True) as live:
        while True:
            fleet = fleet_lines(await registry.list(), await registry.store_time(), out.width)
            try:
                while True:
                    who, what = events.receive_nowait()
                    latest.append(Text(f"{who}: {what}", style="dim"))
            except anyio.WouldBlock:
                pass
            except anyio.EndOfStream:
                return
            live.update(Group(*fleet, Rule(style="dim"), *latest), refresh=True)
            await anyio.sleep(0.1)

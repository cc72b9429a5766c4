"""The output of the demo: lines, or a live table."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, TypeAlias

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from rich.console import Group
from rich.live import Live
from rich.rule import Rule
from rich.text import Text

from agentic.agent import AgentInfo
from agentic.cli.demo import Report
from agentic.cli.tables import fleet_lines
from agentic.cli.terminal import cut_mark, has_colours, out
from agentic.registry import AgentRegistry

Events: TypeAlias = MemoryObjectReceiveStream[tuple[str, str]]
"""The agent of an event, and what happened."""

SHOWN_EVENTS: Final = 6
_OTHER_LINES: Final = 8
"""Lines for the header, the count of omitted agents, the rule, and the command's final output."""


@asynccontextmanager
async def showing(registry: AgentRegistry, *, live: bool) -> AsyncGenerator[Report, None]:
    """Show the events of the demo while its body runs.

    A separate task writes them: a failed write ends the demo, and does not look like an error of the session or
    callback that sent the event.

    Args:
        registry: The demo's own registry, open.
        live: Show a table of the fleet, updated in place, above the latest events; else one line per event.
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
    """Show the fleet above the latest events, updated ten times a second; the last frame stays on screen."""
    latest: deque[Text] = deque(maxlen=SHOWN_EVENTS)
    fleet, now = list[AgentInfo](), await registry.store_time()
    with Live(console=out, auto_refresh=False) as live:
        while True:
            ended = _take(events, latest)
            agents = await registry.list() if not ended else []
            if len(agents) >= len(fleet):  # Do not show the fleet shrinking while the sessions end.
                fleet, now = agents, await registry.store_time()
            live.update(Group(*_table(fleet, now), Rule(style="dim"), *latest), refresh=True)
            if ended:
                return
            await anyio.sleep(0.1)


def _take(events: Events, latest: deque[Text]) -> bool:
    """Move pending events to `latest`; return whether the stream has ended."""
    try:
        while True:
            who, what = events.receive_nowait()
            latest.append(Text(f"{who}: {what}", style="dim", no_wrap=True, overflow="ellipsis"))
    except anyio.WouldBlock:
        return False
    except anyio.EndOfStream:
        return True


def _table(fleet: list[AgentInfo], now: datetime) -> list[Text]:
    """Return the lines of the fleet that fit above the events, and one that counts the omitted agents."""
    room = max(1, out.height - SHOWN_EVENTS - _OTHER_LINES)
    agents = sorted(fleet, key=lambda agent: agent.id)
    lines = fleet_lines(agents[:room], now, out.width, colours=has_colours(), cut=cut_mark())
    texts = [Text.from_ansi(line, no_wrap=True) for line in lines]
    if len(agents) > room:
        counts = Counter(str(agent.status) for agent in agents[room:])
        more = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        texts.append(Text(f"and {len(agents) - room} more: {more}", style="dim", no_wrap=True, overflow="ellipsis"))
    return texts

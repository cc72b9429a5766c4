"""Agents as a table on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from rich.table import Table
from rich.text import Text

from agentic.agent import AgentInfo, AgentStatus
from agentic.findings import Finding, Level

_COLOURS: Final = {
    AgentStatus.AVAILABLE: "green",
    AgentStatus.BUSY: "yellow",
    AgentStatus.OFFLINE: "red",
    AgentStatus.UNKNOWN: "dim",
}


_MARKS: Final = {Level.OK: ("ok  ", "green"), Level.NOTE: ("note", "yellow"), Level.BAD: ("BAD ", "bold red")}


def finding_line(finding: Finding) -> Text:
    """Return a finding as one line, what to do about it behind an arrow."""
    line = Text.assemble(_MARKS[finding.level], f"  {finding.subject:26} ", printable(finding.found))
    return line.append(f"  -> {finding.advice}", style="yellow") if finding.advice else line


def fleet_table(agents: Iterable[AgentInfo], now: datetime) -> Table:
    """Return a table of agents in the order of their ids, with the age of each last heartbeat at `now`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "name", "status"):
        table.add_column(column, overflow="fold")
    table.add_column("load", justify="right")
    table.add_column("last heartbeat", justify="right")
    table.add_column("capabilities", overflow="fold")
    for agent in sorted(agents, key=lambda each: each.id):
        table.add_row(
            printable(agent.id),
            printable(agent.name),
            Text(agent.status, style=_COLOURS[agent.status]),
            f"{agent.current_load}/{agent.max_load or '∞'}",
            age(agent.last_heartbeat, now),
            printable(", ".join(agent.capabilities)),
        )
    return table


def printable(text: str) -> Text:
    """Return a text as it stands, free of markup, with control characters written as escapes."""
    return Text("".join(char if char.isprintable() else repr(char)[1:-1] for char in text))


def age(instant: datetime | None, now: datetime) -> str:
    """Return how long ago an instant was, in the unit that suits it."""
    if instant is None or instant.year == 1:
        return "never"
    seconds = max(0.0, (now - instant).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.1f} s ago"

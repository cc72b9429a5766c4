"""Agents and findings as lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from agentic.agent import AgentInfo, AgentStatus
from agentic.findings import Finding, Level
from agentic.terminal import escaped

_HEADER: Final = ("id", "name", "status", "load", "last heartbeat", "capabilities")
_RIGHT_ALIGNED: Final = (3, 4)
_NARROWED: Final = {5: 12, 1: 7, 0: 24}
"""The columns to narrow, the first one first, and how narrow."""

_STATUS: Final = 2
_COLOURS: Final[dict[str, str]] = {
    AgentStatus.AVAILABLE: "green",
    AgentStatus.BUSY: "yellow",
    AgentStatus.OFFLINE: "red",
    AgentStatus.UNKNOWN: "dim",
}
_MARKS: Final = {Level.OK: ("ok  ", "green"), Level.NOTE: ("note", "yellow"), Level.BAD: ("BAD ", "bold red")}


def finding_line(finding: Finding) -> Text:
    """Return a finding as one line, what to do about it behind an arrow."""
    line = Text.assemble(_MARKS[finding.level], f"  {escaped(finding.subject).plain:26} ", escaped(finding.found))
    return line.append(f"  -> {escaped(finding.advice)}", style="yellow") if finding.advice else line


def fleet_lines(agents: Iterable[AgentInfo], now: datetime, width: int | None = None) -> list[Text]:
    """Return a header and one line for each agent, in the order of their ids, in aligned columns.

    Args:
        agents: In any order.
        now: The instant to which the age of each last heartbeat is given.
        width: How many cells a line may have; None for as many as it needs. Capabilities are cropped first, then names,
            then ids.
    """
    rows = [_HEADER, *(_row(agent, now) for agent in sorted(agents, key=lambda each: each.id))]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        _narrow(widths, width)
    lines = [_line(row, widths) for row in rows]
    lines[0].stylize("bold")
    for line in lines:
        line.rstrip()
        if width is not None:
            line.truncate(width)
    return lines


def age(instant: datetime | None, now: datetime) -> str:
    """Return how long ago an instant was, in the unit that suits it."""
    if instant is None or instant.year == 1:
        return "never"
    seconds = max(0.0, (now - instant).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.1f} s ago"


def _row(agent: AgentInfo, now: datetime) -> tuple[str, ...]:
    load = f"{agent.current_load}/{agent.max_load}" if agent.max_load else str(agent.current_load)
    texts = (agent.id, agent.name, agent.status, load, age(agent.last_heartbeat, now), ", ".join(agent.capabilities))
    return tuple(escaped(text).plain for text in texts)


def _narrow(widths: list[int], room: int) -> None:
    """Narrow columns until a line fits, or nothing is left to narrow."""
    for column, least in _NARROWED.items():
        excess = sum(widths) + 2 * (len(widths) - 1) - room
        widths[column] -= max(0, min(excess, widths[column] - least))


def _line(row: tuple[str, ...], widths: list[int]) -> Text:
    line = Text()
    for column, (text, width) in enumerate(zip(row, widths, strict=True)):
        colour = _COLOURS.get(text, "") if column == _STATUS else ""
        line.append(_cell(text, width, to_the_right=column in _RIGHT_ALIGNED), style=colour).append("  ")
    return line


def _cell(text: str, width: int, *, to_the_right: bool) -> str:
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "~"
    padding = " " * (width - length)
    return padding + text if to_the_right else text + padding

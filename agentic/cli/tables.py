"""Format agents and findings as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from agentic.agent import AgentInfo, AgentStatus
from agentic.findings import Finding, Level
from agentic.text import printable
from agentic.wire import encode_agent

_HEADER: Final = ("id", "name", "status", "load", "heartbeat", "capabilities")
_ID, _NAME, _STATUS, _LOAD, _HEARTBEAT, _CAPABILITIES = range(len(_HEADER))
_RIGHT_ALIGNED: Final = (_LOAD, _HEARTBEAT)
_GAP: Final = "  "

_NARROWED: Final = {_CAPABILITIES: 12, _NAME: 12, _ID: 16}
"""The columns to narrow, in this order, and their minimum widths."""

_DROPPED: Final = (_CAPABILITIES, _NAME, _LOAD, _HEARTBEAT, _STATUS)
"""The columns to drop if narrowing is not enough, in this order."""

_PLAIN: Final = "\x1b[0m"
_BOLD: Final = "\x1b[1m"
_COLOURS: Final[dict[str, str]] = {
    AgentStatus.AVAILABLE: "\x1b[32m",
    AgentStatus.BUSY: "\x1b[33m",
    AgentStatus.OFFLINE: "\x1b[31m",
    AgentStatus.UNKNOWN: "\x1b[2m",
}
_MARKS: Final = {Level.OK: ("ok  ", "green"), Level.NOTE: ("note", "yellow"), Level.BAD: ("BAD ", "bold red")}
_SUBJECT_CELLS: Final = 26


def finding_line(finding: Finding) -> Text:
    """Return a finding as one line, with its advice after an arrow."""
    subject = printable(finding.subject, longest=None)
    return Text.assemble(_MARKS[finding.level], f"  {subject:{_SUBJECT_CELLS}} ", _found(finding))


def finding_row(finding: Finding, width: int) -> Table:
    """Return a finding as a table row of `width` cells, wrapped between words."""
    row = Table.grid(padding=(0, 2))
    row.add_column(width=4)
    row.add_column(width=min(_SUBJECT_CELLS, width // 3), overflow="fold")
    row.add_column(ratio=1, overflow="fold")
    row.add_row(Text(*_MARKS[finding.level]), Text(printable(finding.subject, longest=None)), _found(finding))
    row.width = width
    return row


def _found(finding: Finding) -> Text:
    text = Text(printable(finding.found, longest=None))
    return text.append(f"  -> {printable(finding.advice, longest=None)}", style="yellow") if finding.advice else text


def fleet_lines(
    agents: Iterable[AgentInfo], now: datetime, width: int | None = None, *, colours: bool = False, cut: str = "…"
) -> list[str]:
    """Return a header and one line for each agent, in aligned columns.

    Args:
        agents: In the order to show.
        now: The time from which ages are counted.
        width: The maximum cells per line; None for no limit. Capabilities are cropped first, then names, then ids; if
            that is not enough, columns are dropped, the status last.
        colours: Add escape codes for bold and colours.
        cut: The character, one cell wide, that marks a cropped text.
    """
    rows = [_HEADER, *(_row(agent, now) for agent in agents)]
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    columns = list(range(len(widths)))
    if width is not None:
        _fit(columns, widths, width)
    shape = [(column, widths[column], column in _RIGHT_ALIGNED) for column in columns]
    lines = [_line(row, shape, cut, colours=colours) for row in rows]
    if colours:
        lines[0] = f"{_BOLD}{lines[0]}{_PLAIN}"
    return lines


def agent_json(agent: AgentInfo) -> bytes:
    """Return an agent as its record, and its drain if it has one."""
    record = encode_agent(agent)
    if agent.draining is None:
        return record
    return b'%b,"draining":%b}' % (record[:-1], msgspec.json.encode(agent.draining))


def age(instant: datetime | None, now: datetime) -> str:
    """Return the time since an instant in a suitable unit."""
    if instant is None or instant.year == 1:
        return "never"
    seconds = max(0.0, (now - instant).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.1f} s ago"


def _row(agent: AgentInfo, now: datetime) -> tuple[str, ...]:
    load = f"{agent.current_load}/{agent.max_load}" if agent.max_load else str(agent.current_load)
    return (
        printable(agent.id, longest=None),
        printable(agent.name, longest=None),
        agent.status.value + ", draining" * (agent.draining is not None) + ", unready" * bool(agent.unready),
        load,
        age(agent.last_heartbeat, now),
        printable(", ".join(agent.capabilities), longest=None),
    )


def _fit(columns: list[int], widths: list[int], room: int) -> None:
    """Drop columns until the others fit at their minimum widths, then narrow them as needed."""

    def excess(cells: Sequence[int]) -> int:
        return sum(cells[column] for column in columns) + len(_GAP) * (len(columns) - 1) - room

    narrowest = [min(width, _NARROWED.get(column, width)) for column, width in enumerate(widths)]
    for column in _DROPPED:
        if excess(narrowest) <= 0:
            break
        columns.remove(column)
    narrowest[_ID] = min(narrowest[_ID], room)
    for column in (column for column in _NARROWED if column in columns):
        widths[column] -= max(0, min(excess(widths), widths[column] - narrowest[column]))


def _line(row: Sequence[str], shape: Sequence[tuple[int, int, bool]], cut: str, *, colours: bool) -> str:
    cells = []
    for column, width, right_aligned in shape:
        text = row[column]
        length = _cells(text)
        if length > width:
            text, length = set_cell_size(text, width - 1) + cut, width
        padding = " " * (width - length)
        if colours and column == _STATUS and (colour := _COLOURS.get(text.partition(",")[0])):
            text = f"{colour}{text}{_PLAIN}"
        cells.append(padding + text if right_aligned else text + padding)
    return _GAP.join(cells).rstrip()


def _cells(text: str) -> int:
    """Return the width of a printable text in terminal cells."""
    return len(text) if text.isascii() else cell_len(text)

"""Tables of a run's figures, and its environment."""

from __future__ import annotations

import os
import platform
import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from typing import Any, Final

from rich.table import Table

from benchmarks.samples import OURS

DISTRIBUTIONS: Final = ("agentic-registry", "redis", "hiredis", "aiosqlite", "msgspec", "anyio")
NAMES: Final = {"memory": "Memory", "sqlite": "SQLite", "redis": "Redis"}


def about(arguments: Sequence[str], module: str = "benchmarks") -> dict[str, Any]:
    """Return the environment of a run: machine, versions, command line."""
    distributions = (*DISTRIBUTIONS, "uvloop") if "--uvloop" in arguments else DISTRIBUTIONS
    return {
        "command": shlex.join(["python", "-m", module, *arguments]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in distributions},
    }


def tables(document: dict[str, Any]) -> Iterator[Table]:
    """Yield a table of calls and one of scans for each store."""
    for (store, counted), rows in _by_kind(document):
        made = Table(title=f"{NAMES[store]}, {counted} a second", title_justify="left", box=None, header_style="bold")
        head, *columns = _head(counted, rows)
        made.add_column(head, no_wrap=True)
        for column in columns:
            made.add_column(column, justify="right")
        for row in rows:
            made.add_row(*_cells(row, rows))
        yield made


def markdown(document: dict[str, Any]) -> str:
    """Return the tables as Markdown, without rows that add little."""
    lines: list[str] = []
    for (store, counted), rows in _by_kind(document):
        kept = [row for row in rows if row["size"] not in (64, 10_000 if counted == "agents" else 0)]
        kept = [row for row in kept if row["call"] not in ("scan", "reap, 1 % stale")]
        head = _head(counted, rows)
        lines += [f"### {NAMES[store]}, {counted} a second", "", _line(head)]
        lines += ["|---|" + "---:|" * (len(head) - 1), *(_line(_cells(row, rows)) for row in kept), ""]
    return "\n".join(lines)


def _by_kind(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str], list[dict[str, Any]]]]:
    for kind, rows in groupby(document["results"], key=lambda row: (row["store"], row["counted"])):
        yield kind, list(rows)


def _peers(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(peer for row in rows for peer in row["ratios"]))


def _head(counted: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    size = "callers" if counted == "calls" else "agents"
    latency = ["p50 ms", "p99 ms"] if counted == "calls" else []
    return ["call", size, OURS, *latency, "loop blocked ms", *(f"to {peer}" for peer in _peers(rows))]


def _cells(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    ours = row["medians"][OURS]
    figures = ("p50", "p99", "held") if row["counted"] == "calls" else ("held",)
    return [
        row["call"],
        f"{row['size']:,}",
        f"{ours['rate']:,.0f}",
        *(_figure(ours[name]) for name in figures),
        *(_figure(row["ratios"].get(peer)) for peer in _peers(rows)),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def footer(document: dict[str, Any]) -> str:
    """Return the environment of the run, one entry per line."""
    return "\n".join(f"{name}: {value}" for name, value in document["about"].items())


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"

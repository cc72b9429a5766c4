"""A run's figures as tables, and what they were measured on."""

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


def about(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a run's rates depend on: the machine, the versions, the command line."""
    distributions = (*DISTRIBUTIONS, "uvloop") if "--uvloop" in arguments else DISTRIBUTIONS
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in distributions},
    }


def tables(document: dict[str, Any]) -> Iterator[Table]:
    """Yield a table of calls and one of walks for each store."""
    for (store, counted), group in groupby(document["results"], key=lambda row: (row["store"], row["counted"])):
        rows = list(group)
        peers = list(dict.fromkeys(peer for row in rows for peer in row["ratios"]))
        made = Table(title=f"{store}, {counted} a second", title_justify="left", box=None, header_style="bold")
        made.add_column("call", no_wrap=True)
        made.add_column("callers" if counted == "calls" else "agents", justify="right")
        for column in (OURS, "p50 ms", "p99 ms", "loop held ms", *(f"to {peer}" for peer in peers)):
            made.add_column(column, justify="right")
        for row in rows:
            ours = row["medians"][OURS]
            made.add_row(
                row["call"],
                f"{row['size']:,}",
                f"{ours['rate']:,.0f}",
                *(_figure(ours[name]) for name in ("p50", "p99", "held")),
                *(_figure(row["ratios"].get(peer)) for peer in peers),
            )
        yield made


def footer(document: dict[str, Any]) -> str:
    """Return what the run was measured on, a line each."""
    return "\n".join(f"{name}: {value}" for name, value in document["about"].items())


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"

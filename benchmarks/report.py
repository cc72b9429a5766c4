"""A run as a table and as JSON, with what it ran on."""

from __future__ import annotations

import os
import platform
import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from typing import Any

from rich.table import Table

from benchmarks.measure import OURS, Result

DISTRIBUTIONS = ("agentic-registry", "redis", "hiredis", "aiosqlite", "msgspec", "anyio")


def about(arguments: Sequence[str], server: str | None) -> dict[str, Any]:
    """Return what the run's rates depend on: the machine, the versions, the command line."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "server": server,
        **{name: version(name) for name in DISTRIBUTIONS},
    }


def tables(results: Sequence[Result]) -> Iterator[Table]:
    """Yield a table for each store and peer: medians, and how many times the peer's rate the registry's is."""
    for (store, *peers), rows in groupby(results, key=lambda result: (result.store, *result.peers)):
        made = Table(title=" beside ".join((store, *peers)), title_justify="left", box=None, header_style="bold")
        made.add_column("call", no_wrap=True)
        for column in ("tasks", OURS, *peers, *("ratio" for _ in peers)):
            made.add_column(column, justify="right")
        made.add_column("counted")
        for result in rows:
            rates = [f"{result.median_rate(name):,.0f}" for name in (OURS, *peers)]
            ratios = [f"{result.ratio(peer):.1f}" for peer in peers]
            made.add_row(result.case.call, str(result.case.tasks), *rates, *ratios, f"{result.case.unit}/s")
        yield made


def document(about_run: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """Return the run as what JSON can hold, every single rate included."""
    return {
        "about": about_run,
        "results": [
            {
                "store": result.store,
                "call": result.case.call,
                "tasks": result.case.tasks,
                "unit": f"{result.case.unit} a second",
                "medians": {name: round(result.median_rate(name), 1) for name in result.rates},
                "ratios": {peer: round(result.ratio(peer), 2) for peer in result.peers},
                "rates": {name: [round(rate, 1) for rate in rates] for name, rates in result.rates.items()},
            }
            for result in results
        ],
    }

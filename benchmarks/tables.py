"""`python -m benchmarks.tables`: write the figures of the committed runs into the pages, between markers."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.report import NAMES, markdown
from benchmarks.samples import OURS

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = ("README.md", "docs/index.md", "docs/performance.md", "docs/scaling.md")
BLOCK: Final = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
INTERVAL: Final = 10
"""Default seconds between the heartbeats of a session."""


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or with `--check` compare them; return 1 if a page differs from the runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page differs from the runs")
    check = parser.parse_args(arguments).check
    differing = [name for name in PAGES if _differs(ROOT / name, write=not check)]
    for name in differing:
        print(f"{name}: {'differs from the runs: python -m benchmarks.tables' if check else 'written'}")
    return 1 if check and differing else 0


def filled(text: str) -> str:
    """Return a page with the block of each marker regenerated."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]().strip()}\n\n{found[3]}", text)


def _differs(path: Path, *, write: bool) -> bool:
    text = path.read_text(encoding="utf-8")
    wanted = filled(text)
    if write and wanted != text:
        path.write_text(wanted, encoding="utf-8")
    return wanted != text


def _run(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
    )
    return document


def _summary() -> str:
    """Return the gain over plain programs, in three rows."""
    document = _run("asyncio")
    rows = [
        "| what | a second | times the plain program |",
        "|---|---:|---:|",
        _gain(document, "redis", "heartbeat", "GET and SET a call", "heartbeats to Redis, 1,000 callers"),
        _gain(document, "sqlite", "heartbeat", "one commit a call, NORMAL", "heartbeats to SQLite, 1,000 callers"),
        _gain(document, "redis", "list", "GET and SET a call", "agents listed from Redis, of 20,000"),
    ]
    about = document["about"]
    measured = (
        f"Measured on {about['cores']} shared cores with {about['python']}, {about['server']} and SQLite "
        f"{about['sqlite']}. The plain programs send a GET and a SET for each heartbeat, commit each heartbeat by "
        "itself, and send one GET for each key."
    )
    return "\n".join([*rows, "", measured])


def _gain(document: dict[str, Any], store: str, call: str, peer: str, what: str) -> str:
    row = _row(document, store, call, 20_000 if call == "list" else 1_000)
    return f"| {what} | {row['medians'][OURS]['rate']:,.0f} | {row['ratios'][peer]:.3g} |"


def _fleet() -> str:
    """Return the costs of fleets in Redis, computed from the run."""
    document = _run("asyncio")
    rows = ["| agents | heartbeats a second | memory in Redis | a sweep of one reaper |", "|---:|---:|---:|---:|"]
    for agents in (1_000, 10_000, 100_000, 1_000_000):
        memory = agents * document["about"]["bytes per agent, redis"] / 1e6
        sweep = agents / _row(document, "redis", "reap, none stale", agents)["medians"][OURS]["rate"]
        rows.append(f"| {agents:,} | {agents // INTERVAL:,} | {_two_digits(memory)} MB | {_seconds(sweep)} |")
    return "\n".join(rows)


def _scaling() -> str:
    """Return the medians of the run that compares one server with a cluster."""
    rates = {name: median(each) for name, each in _run("scaling")["rates"].items()}
    rows = ["| measured | a second |", "|---|---:|"]
    return "\n".join([*rows, *(f"| {name} | {rate:,.0f} |" for name, rate in rates.items())])


def _row(document: dict[str, Any], store: str, call: str, size: int) -> dict[str, Any]:
    wanted = (store, call, size)
    return next(row for row in document["results"] if (row["store"], row["call"], row["size"]) == wanted)


def _bytes() -> str:
    """Return the size of an agent in each store."""
    about = _run("asyncio")["about"]
    rows = [f"| {name} | {about[f'bytes per agent, {store}']} |" for store, name in NAMES.items()]
    return "\n".join(["| store | bytes for each agent |", "|---|---:|", *rows])


def _seconds(seconds: float) -> str:
    return f"{_two_digits(seconds)} s" if seconds >= 0.1 else f"{_two_digits(1000 * seconds)} ms"


def _two_digits(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{float(f'{value:.2g}'):,.0f}"


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "summary": _summary,
    "asyncio": lambda: markdown(_run("asyncio")),
    "uvloop": lambda: markdown(_run("uvloop")),
    "bytes": _bytes,
    "fleet": _fleet,
    "scaling": _scaling,
}
"""Functions that return the text between the markers of each name."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m benchmarks`: measure the stores, print tables, write JSON, draw the plot."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import report
from benchmarks.samples import Result
from benchmarks.stores import STORES, Plan, measure_store


def main(arguments: Sequence[str]) -> None:
    """Run the benchmarks, or load a finished run, and write the requested outputs."""
    options = _parser().parse_args(arguments)
    if options.load is not None:
        document = json.loads(options.load.read_text(encoding="utf-8"))
    else:
        document = _measure(options, arguments)
    if options.markdown:
        print(report.markdown(document))
    else:
        console = Console()
        console.width = max(console.width, 120)
        for table in report.tables(document):
            console.print(table, "", sep="\n")
        console.print(report.footer(document), style="dim", highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        from benchmarks.plot import draw  # noqa: PLC0415  only this needs matplotlib

        draw(document, options.plot)


def _measure(options: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    plan = Plan(options.agents, options.repeats, options.seconds)
    results: list[Result] = []
    facts: dict[str, Any] = {}
    for store in options.store:
        with (
            tempfile.TemporaryDirectory(prefix="agentic-bench-") as folder,
            asyncio.Runner(loop_factory=_loop_factory(options.uvloop)) as runner,
        ):
            found, more = runner.run(measure_store(store, plan, Path(folder), _print_progress))
        results += found
        facts |= more
    return {"about": report.about(arguments) | facts, "results": [result.document() for result in results]}


def _loop_factory(wants_uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not wants_uvloop:
        return None
    import uvloop  # noqa: PLC0415  only this option needs it

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _print_progress(progress: str) -> None:
    print(progress, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the registry's calls on each store and compare them with plain programs that do the same "
        "work, on a server started for the run. Figures are medians of interleaved repeats; progress goes to stderr. "
        "Compare ratios within a run, not rates of different hosts.",
    )
    parser.add_argument("--store", type=_stores, default=STORES, metavar="redis,sqlite,memory", help="which stores")
    parser.add_argument("--agents", type=_count, default=100_000, metavar="N", help="the largest fleet (100000)")
    parser.add_argument("--repeats", type=_count, default=3, metavar="N", help="how often to measure each case (3)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="how long to measure calls (0.5)")
    parser.add_argument("--uvloop", action="store_true", help="use uvloop's event loop instead of asyncio's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with versions, to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures into this SVG file")
    parser.add_argument("--load", type=Path, metavar="FILE", help="measure nothing: load figures from this JSON file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    return parser


def _stores(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in STORES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown store {unknown[0]!r}: expected {', '.join(STORES)}")
    return names


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    main(sys.argv[1:])

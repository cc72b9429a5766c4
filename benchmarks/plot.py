"""The figures as a picture: what a walk costs as the fleet grows, and what a thousand callers get beside the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.samples import OURS

COLOURS: Final = {"redis": "#c0392b", "sqlite": "#2471a3", "memory": "#7d8790"}
LINES: Final = {"list": "-", "reap, none stale": "--", "reap, all stale": ":"}
CALLERS: Final = 1_000
GREY: Final = "#b8bfc6"


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a run into an SVG or PNG file."""
    mpl.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "agentic"}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    costs, rates = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_costs(costs, document["results"])
    _draw_rates(rates, document["results"])
    about = document["about"]
    figure.supxlabel(
        f"{about['cores']} cores, Python {about['python'].split()[-1]}, {about.get('server', 'no server')}, "
        f"SQLite {about['sqlite']}: {about['command']}",
        fontsize=7,
        color="#666666",
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=160)


def _draw_costs(axes: Axes, results: list[dict[str, Any]]) -> None:
    for store, colour in COLOURS.items():
        for call, line in LINES.items():
            points = [
                (row["size"], 1000 * row["size"] / row["medians"][OURS]["rate"])
                for row in results
                if row["store"] == store and row["call"] == call and row["counted"] == "agents"
            ]
            if points:
                axes.plot(*zip(*points, strict=True), line, color=colour, marker="o", ms=3, label=f"{store}: {call}")
    axes.set(xscale="log", yscale="log", xlabel="agents in the fleet", ylabel="milliseconds")
    axes.set_title("One call that walks the fleet", loc="left", fontweight="bold")
    axes.grid(which="major", color="#eeeeee")
    axes.legend(fontsize=7, frameon=False, handlelength=3.5)


def _draw_rates(axes: Axes, results: list[dict[str, Any]]) -> None:
    rows = [row for row in results if row["size"] == CALLERS and row["counted"] == "calls" and row["ratios"]]
    labels, position = [], 0.0
    for row in rows:
        medians = row["medians"]
        for name in reversed(medians):
            rate = medians[name]["rate"]
            axes.barh(position, rate, height=0.85, color=COLOURS[row["store"]] if name == OURS else GREY)
            axes.text(rate, position, f" {rate:,.0f}", va="center", fontsize=7)
            labels.append((position, f"{row['store']} {row['call']}" if name == OURS else name))
            position += 1
        position += 0.6
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=7)
    axes.set_xlabel("calls a second")
    axes.set_title(f"{CALLERS:,} callers, each awaiting one call", loc="left", fontweight="bold")
    axes.margins(x=0.15)

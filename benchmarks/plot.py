"""Plot the figures: the cost of a scan by fleet size, and the rates of a thousand callers compared with the peers."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.samples import OURS

COLOURS: Final = {"redis": "#c0392b", "sqlite": "#2471a3", "memory": "#6b7683"}
LINES: Final = {"list": "-", "reap, none stale": "--", "reap, all stale": ":"}
CALLERS: Final = 1_000
INK: Final = "#1f2328"
PAPER: Final = "#ffffff"
GRID: Final = "#e4e7eb"
PEER: Final = "#b8bfc6"
DARK: Final = {
    INK: "#e6e9ee",
    PAPER: "#1e2129",
    GRID: "#363b47",
    PEER: "#59626e",
    COLOURS["redis"]: "#ef7b6e",
    COLOURS["sqlite"]: "#62b0e8",
    COLOURS["memory"]: "#a3adb9",
}
"""The colours in dark mode."""
TEXT: Final[Any] = {
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "agentic",
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(document: dict[str, Any], path: Path) -> None:
    """Draw a run into an SVG file that follows the colour scheme of the page."""
    mpl.rcParams.update(TEXT)
    figure = Figure(figsize=(7.6, 11.5), layout=ConstrainedLayoutEngine(h_pad=0.15))
    costs, rates = figure.subplots(2, 1, height_ratios=(1, 1.5))
    _draw_costs(costs, document["results"])
    _draw_rates(rates, document["results"])
    about = document["about"]
    figure.supxlabel(
        f"{about['cores']} cores, Python {about['python'].split()[-1]}, {about.get('server', 'no server')}, "
        f"SQLite {about['sqlite']}",
        fontsize=10,
    )
    drawn = StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    path.write_text(_themed(drawn.getvalue()), encoding="utf-8")


def _themed(svg: str) -> str:
    """Return the SVG with a CSS variable for each colour."""
    light, dark = [], []
    for number, (colour, other) in enumerate(DARK.items()):
        svg = svg.replace(colour, f"var(--c{number})")
        light.append(f"--c{number}: {colour}")
        dark.append(f"--c{number}: {other}")
    style = f":root {{ {'; '.join(light)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {'; '.join(dark)} }} }}\n"
    return svg.replace('<style type="text/css">', f'<style type="text/css">\n{style}', 1)


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
    axes.grid(which="major", color=GRID)
    axes.legend(
        fontsize=10,
        frameon=False,
        handlelength=2,
        columnspacing=1,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.4, -0.16),
    )


def _draw_rates(axes: Axes, results: list[dict[str, Any]]) -> None:
    rows = [row for row in results if row["size"] == CALLERS and row["counted"] == "calls" and row["ratios"]]
    labels, position = [], 0.0
    for row in rows:
        medians = row["medians"]
        for name in reversed(medians):
            rate = medians[name]["rate"]
            axes.barh(position, rate, height=0.85, color=COLOURS[row["store"]] if name == OURS else PEER)
            axes.text(rate, position, f" {rate:,.0f}", va="center", fontsize=10.5)
            labels.append((position, f"{row['store']} {row['call']}" if name == OURS else name))
            position += 1
        position += 0.6
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=10.5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("calls a second")
    axes.set_title(f"{CALLERS:,} callers, each awaiting one call", loc="left", fontweight="bold")
    axes.margins(x=0.15)

"""Samples of measurements, and their medians and ratios."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

OURS: Final = "agentic"


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        store: The store.
        call: The call.
        counted: The unit of the rate: "calls", or "agents" if one call covers the fleet.
        size: The number of concurrent callers, or of agents in the fleet.
    """

    store: str
    call: str
    counted: str
    size: int


@dataclass
class Sample:
    """One measurement: calls or agents per second; latencies and the longest loop pause in milliseconds."""

    rate: float
    p50: float | None = None
    p99: float | None = None
    held: float | None = None


@dataclass
class Result:
    """The samples of one case by contender, one per repeat."""

    case: Case
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, contender: str, sample: Sample) -> None:
        """Add a sample."""
        self.samples.setdefault(contender, []).append(sample)

    def median(self, contender: str, figure: str) -> float | None:
        """Return the median of one figure over the repeats."""
        values = [value for sample in self.samples[contender] if (value := getattr(sample, figure)) is not None]
        return median(values) if values else None

    def ratio(self, peer: str) -> float:
        """Return the ratio of our rate to the peer's: the median of the ratios of the repeats."""
        pairs = zip(self.samples[OURS], self.samples[peer], strict=True)
        return median(ours.rate / theirs.rate for ours, theirs in pairs)

    @property
    def peers(self) -> list[str]:
        """All contenders but OURS."""
        return [name for name in self.samples if name != OURS]

    def document(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        return {
            **asdict(self.case),
            "medians": {
                name: {figure: rounded(self.median(name, figure)) for figure in ("rate", "p50", "p99", "held")}
                for name in self.samples
            },
            "ratios": {peer: rounded(self.ratio(peer)) for peer in self.peers},
            "rates": {name: [rounded(sample.rate) for sample in samples] for name, samples in self.samples.items()},
        }


def rounded(value: float | None) -> float | None:
    """Round a figure to four significant digits."""
    return None if value is None else float(f"{value:.4g}")

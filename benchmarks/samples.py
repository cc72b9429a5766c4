"""What a measurement gives, and what several of it say together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final

OURS: Final = "agentic"


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        store: Which store.
        call: Which call.
        counted: What is counted in a second: "calls", or "agents" where one call concerns the fleet.
        size: How many callers await at once, or how many agents the fleet has.
    """

    store: str
    call: str
    counted: str
    size: int


@dataclass
class Sample:
    """One measurement: calls or agents in a second; latency and the longest pause of the event loop in milliseconds."""

    rate: float
    p50: float | None = None
    p99: float | None = None
    held: float | None = None


@dataclass
class Result:
    """The samples of one case, one for each repeat, by contender."""

    case: Case
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, contender: str, sample: Sample) -> None:
        """Take note of a sample."""
        self.samples.setdefault(contender, []).append(sample)

    def median(self, contender: str, figure: str) -> float | None:
        """Return the median of one figure over the repeats."""
        values = [value for sample in self.samples[contender] if (value := getattr(sample, figure)) is not None]
        return median(values) if values else None

    def ratio(self, peer: str) -> float:
        """Return how many times the peer's rate is OURS: the median of the repeats' own ratios."""
        pairs = zip(self.samples[OURS], self.samples[peer], strict=True)
        return median(ours.rate / theirs.rate for ours, theirs in pairs)

    @property
    def peers(self) -> list[str]:
        """The contenders beside OURS."""
        return [name for name in self.samples if name != OURS]

    def document(self) -> dict[str, Any]:
        """Return the result as what JSON can hold."""
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
    """Return a figure with four digits."""
    return None if value is None else float(f"{value:.4g}")

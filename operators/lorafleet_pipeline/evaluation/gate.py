"""The gate: what a candidate must show before it may serve. A verdict is a list of named checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.evaluation.bootstrap import Interval, paired_interval
from lorafleet_pipeline.spec import GateSection

MIN_ROWS = 20
"""Fewer judged rows than this prove nothing."""
_ROUNDING = 1e-9
"""Means that differ by exactly a threshold do so only up to this: 0.50 and 0.52 are more than 0.02 apart in binary."""


@dataclass(frozen=True)
class Check:
    """One condition, and what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Scores:
    """Score of each judged row, in the same order for every contestant."""

    base: Sequence[float]
    candidate: Sequence[float]
    champion: Sequence[float] | None = None

    @property
    def lift(self) -> float:
        """Mean gain over the base."""
        return fmean(self.candidate) - fmean(self.base)

    def interval(self, seed: int) -> Interval:
        """Paired bootstrap interval of the lift."""
        return paired_interval(self.candidate, self.base, seed)


@dataclass(frozen=True)
class Verdict:
    """All checks, and what follows from them."""

    checks: tuple[Check, ...]

    @property
    def status(self) -> GateStatus:
        """Passed if every check did."""
        return GateStatus.PASSED if all(check.passed for check in self.checks) else GateStatus.FAILED

    @property
    def reason(self) -> str:
        """What failed, in one line; empty if nothing did."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)


def judge(gate: GateSection, scores: Scores, interval: Interval, metric: str, champion_note: str) -> Verdict:
    """Judge the scores of a candidate that loaded.

    Args:
        gate: the spec's thresholds.
        scores: scores of every contestant.
        interval: interval of the lift.
        metric: name of the metric, for the details.
        champion_note: which champion was compared, or why none was.
    """
    return Verdict(
        (
            _enough_rows(len(scores.candidate)),
            _min_lift(gate, scores, metric),
            _beats_base(gate, interval, metric),
            _no_regression(gate, scores, metric, champion_note),
        )
    )


def _enough_rows(num_rows: int) -> Check:
    return Check(
        "enough_rows", num_rows >= MIN_ROWS, f"{num_rows} test rows were judged, at least {MIN_ROWS} are needed"
    )


def _min_lift(gate: GateSection, scores: Scores, metric: str) -> Check:
    detail = (
        f"{metric} {fmean(scores.candidate):.4f} against {fmean(scores.base):.4f} of the base: "
        f"lift {scores.lift:+.4f}, gate.min_lift is {gate.min_lift:+.4f}"
    )
    return Check("min_lift", scores.lift >= gate.min_lift - _ROUNDING, detail)


def _beats_base(gate: GateSection, interval: Interval, metric: str) -> Check:
    """A gate that tolerates less than the base (negative `min_lift`) asks that much less of the interval, too."""
    least = min(0.0, gate.min_lift)
    passed = interval.low > least or (gate.min_lift < 0 and interval.low == least)
    detail = (
        f"95 % interval of the lift in {metric} is {interval.low:+.4f} to {interval.high:+.4f}, "
        f"its low end must lie above {least:+.4f}"
    )
    return Check("beats_base", passed, detail)


def _no_regression(gate: GateSection, scores: Scores, metric: str, champion_note: str) -> Check:
    if scores.champion is None:
        return Check("no_regression", True, champion_note)
    change = fmean(scores.candidate) - fmean(scores.champion)
    detail = (
        f"{metric} {fmean(scores.candidate):.4f} against {fmean(scores.champion):.4f} of the champion "
        f"({champion_note}): {change:+.4f}, gate.max_regression is {gate.max_regression:.4f}"
    )
    return Check("no_regression", change >= -gate.max_regression - _ROUNDING, detail)

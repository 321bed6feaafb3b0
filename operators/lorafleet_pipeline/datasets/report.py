"""What validation found: counts, row numbers and remedies, never a row's content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from lorafleet_pipeline.datasets.dataset import Split

MAX_ROW_NUMBERS = 10
"""Most row numbers that a finding names."""


class Severity(StrEnum):
    """What follows from a failed expectation: critical ends the run."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One expectation that a split did not meet."""

    check: str
    """Name of the check, or of the spec's expectation with its column."""
    expectation: str
    """Type of the Great Expectations expectation."""
    split: Split
    severity: Severity
    rows: int | None
    """Rows that broke it; None where the expectation judges the column as a whole."""
    of: int
    """Rows of the split."""
    tolerated: float
    """Share of rows that may break it."""
    remedy: str
    row_numbers: tuple[int, ...] = ()
    """Where the first of them stand in the source."""

    @property
    def summary(self) -> str:
        """One line for a person."""
        count = "" if self.rows is None else f" {self.rows} of {self.of} rows"
        limit = f" (at most {100 * self.tolerated:.3g}% may)" if self.tolerated and self.rows is not None else ""
        places = ", ".join(map(str, self.row_numbers))
        more = ", ..." if self.rows is not None and self.rows > len(self.row_numbers) else ""
        where = f", at row {places}{more}" if places else ""
        return f"{self.split}: {self.check} fails{' for' if count else ''}{count}{limit}{where}: {self.remedy}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a finding back."""
        fields = dict(data)
        fields["split"] = Split(fields["split"])
        fields["severity"] = Severity(fields["severity"])
        fields["row_numbers"] = tuple(fields["row_numbers"])
        return cls(**fields)


@dataclass(frozen=True)
class SplitSummary:
    """Size of a split, and lengths of its examples in tokens (prompt and completion together)."""

    rows: int
    examples: int
    """Rows that go on to training or evaluation; 0 when the dataset was refused."""
    median: int
    p95: int
    longest: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a summary back."""
        return cls(**data)


@dataclass(frozen=True)
class ValidationReport:
    """Outcome of validating one dataset."""

    adapter: str
    run_key: str
    success: bool
    """Whether no critical expectation failed."""
    digest: str | None
    """Digest of the prepared dataset; None when it was refused."""
    expectations: int
    """Expectations evaluated."""
    splits: Mapping[Split, SplitSummary]
    lengths_exact: bool
    """Whether lengths are tokens of the base model, or estimated from characters."""
    docs_url: str
    """Address of the Data Docs."""
    findings: tuple[Finding, ...] = field(default=())

    @property
    def critical(self) -> tuple[Finding, ...]:
        """Findings that end the run."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.CRITICAL)

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        data = asdict(self)
        data["splits"] = {str(split): asdict(summary) for split, summary in self.splits.items()}
        data["findings"] = [
            {**asdict(finding), "split": str(finding.split), "severity": str(finding.severity)}
            | {"row_numbers": list(finding.row_numbers)}
            for finding in self.findings
        ]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a report back."""
        splits = {Split(name): SplitSummary.from_json(summary) for name, summary in data["splits"].items()}
        findings = tuple(Finding.from_json(finding) for finding in data["findings"])
        return cls(**{**data, "splits": splits, "findings": findings})

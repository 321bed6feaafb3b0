"""The report of an evaluation. It holds no row; records of single answers stay in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.evaluation.gate import Check


@dataclass(frozen=True)
class EvaluationReport:
    """Scores and verdict. Scores are None where the candidate could not even be loaded."""

    adapter: str
    digest: str
    manifest_digest: str
    status: GateStatus
    reason: str
    metric: str
    rows: int
    base: float | None
    candidate: float | None
    champion: float | None
    lift: float | None
    interval: tuple[float, float] | None
    checks: tuple[Check, ...]
    created_at: str
    waived_by: str | None = None
    champion_version: int | None = None
    skipped_version: int | None = None
    """Version whose report this is, where training was skipped for it."""

    def gate_document(self) -> dict[str, Any]:
        """What is signed and travels with the version."""
        document = self.to_json()
        del document["skipped_version"]
        return document

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            **asdict(self),
            "status": self.status.value,
            "interval": None if self.interval is None else list(self.interval),
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a report back, or a gate document."""
        interval = data["interval"]
        fields = {name: value for name, value in data.items() if name != "signature"}
        return cls(
            **{
                **fields,
                "status": GateStatus(data["status"]),
                "interval": None if interval is None else (interval[0], interval[1]),
                "checks": tuple(Check(**check) for check in data["checks"]),
            }
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a written report."""
        return cls.from_json(json.loads(path.read_text()))

    def metrics(self) -> dict[str, float]:
        """What MLflow records of it."""
        low, high = self.interval or (None, None)
        values = {
            "eval/base": self.base,
            "eval/candidate": self.candidate,
            "eval/champion": self.champion,
            "eval/lift": self.lift,
            "eval/lift_low": low,
            "eval/lift_high": high,
            "eval/rows": float(self.rows),
        }
        return {name: value for name, value in values.items() if value is not None}

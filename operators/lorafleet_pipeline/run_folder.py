"""The folder of one pipeline run: where each step leaves what the next one needs.

One run is identified by the adapter's name and a run key (the Airflow run, or a time for a run by
hand), so that a retry finds what the first try left.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. Nothing is created until a step writes."""

    path: Path

    @classmethod
    def of(cls, work_dir: Path, adapter: str, run_key: str) -> RunFolder:
        """The folder of a run. Keys that are no safe file names are replaced by a digest of themselves."""
        safe = (
            run_key
            if re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,79}", run_key)
            else hashlib.sha256(run_key.encode()).hexdigest()
        )
        return cls(work_dir / adapter / safe)

    @property
    def adapter(self) -> str:
        """Name of the adapter."""
        return self.path.parent.name

    @property
    def run_key(self) -> str:
        """Key of the run, as a file name."""
        return self.path.name

    @property
    def spec_file(self) -> Path:
        """The spec as it was when the run began."""
        return self.path / "spec.yaml"

    @property
    def dataset(self) -> Path:
        """Prepared examples, `<split>.jsonl`, with `manifest.json`."""
        return self.path / "dataset"

    @property
    def validation_file(self) -> Path:
        """Summary of the dataset's validation."""
        return self.path / "validation.json"

    @property
    def docs(self) -> Path:
        """Data Docs of the validation."""
        return self.path / "docs"

    @property
    def training(self) -> Path:
        """State of training: process, progress, checkpoints, log, result."""
        return self.path / "training"

    @property
    def adapter_folder(self) -> Path:
        """The trained adapter, as PEFT writes it."""
        return self.training / "adapter"

    @property
    def training_result(self) -> Path:
        """Result of training."""
        return self.training / "result.json"

    @property
    def evaluation(self) -> Path:
        """Records and report of the evaluation."""
        return self.path / "evaluation"

    @property
    def evaluation_report(self) -> Path:
        """Report of the evaluation."""
        return self.evaluation / "report.json"

    @property
    def gate_report(self) -> Path:
        """The signed gate report."""
        return self.path / "gate" / "report.json"

    @property
    def manifest(self) -> Path:
        """The version's manifest."""
        return self.path / "manifest.json"

    @property
    def registration(self) -> Path:
        """The registered version."""
        return self.path / "registration.json"

"""The result of training: facts that later steps and the command line need, without any row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class TrainingResult:
    """A trained adapter, or the registered version that made training unnecessary."""

    adapter_digest: str
    spec_digest: str
    dataset_digest: str
    base_model: str
    base_digest: str
    method: str
    trained_on: str
    """Form of the base in training: `nf4`, `bf16` or `fp32`."""
    num_steps: int = 0
    loss: float | None = None
    validation_loss: float | None = None
    best_step: int | None = None
    """Step of the adapter that was taken, where it is not the last."""
    stopped_early: bool = False
    num_examples: int = 0
    num_left_out: int = 0
    """Training examples longer than `training.max_len`."""
    num_tokens: int = 0
    seconds: float = 0.0
    mlflow_run_id: str | None = None
    skipped_version: int | None = None
    """Version with the same spec and data, where there is one: nothing was trained."""

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens, prompt and completion, per second."""
        return self.num_tokens / self.seconds if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a result back."""
        return cls(**data)

    def write(self, path: Path) -> None:
        """Write the result, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(self.to_json(), indent=2))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a written result."""
        return cls.from_json(json.loads(path.read_text()))

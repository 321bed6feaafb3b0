"""Progress of a training run: what the trainer reports and a follower reads back."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self


class TrainingPhase(StrEnum):
    """What the training process does now."""

    LOADING = "loading"
    TRAINING = "training"
    SAVING = "saving"


@dataclass(frozen=True)
class TrainingProgress:
    """One report. Before the first step there is neither loss nor speed."""

    phase: TrainingPhase
    step: int
    num_steps: int
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    """Seconds until the last step, by the speed of the latest ones."""
    validation_loss: float | None = None
    """Set at the steps where the validation loss was looked at."""

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a report back."""
        return cls(**{**data, "phase": TrainingPhase(data["phase"])})

    def __str__(self) -> str:
        if self.loss is None:
            return f"{self.phase.value} ({self.step}/{self.num_steps} steps)"
        text = f"step {self.step}/{self.num_steps} loss {self.loss:.4f} lr {self.learning_rate:.2e}"
        if self.tokens_per_s is not None and self.eta_s is not None:
            text += f" {self.tokens_per_s:.0f} tokens/s ETA {self.eta_s:.0f} s"
        return text if self.validation_loss is None else f"{text} validation loss {self.validation_loss:.4f}"


@dataclass
class Speed:
    """Speed over the latest steps: the first step of a run is slow, and a shared machine's speed changes."""

    window: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=20))
    """Tokens and seconds of each step."""

    def record(self, num_tokens: int, seconds: float) -> None:
        """Add a step."""
        self.window.append((num_tokens, seconds))

    @property
    def tokens_per_s(self) -> float:
        """Tokens, prompt and completion, per second."""
        return sum(tokens for tokens, _ in self.window) / max(1e-9, sum(seconds for _, seconds in self.window))

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return sum(seconds for _, seconds in self.window) / max(1, len(self.window))

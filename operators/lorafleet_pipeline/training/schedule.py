"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up from near zero, then half a cosine that reaches zero just after the last step."""

    peak: float
    num_steps: int
    warmup_fraction: float

    @property
    def num_warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return math.ceil(self.num_steps * self.warmup_fraction)

    def at(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        warmup = self.num_warmup_steps
        if step <= warmup:
            return self.peak * step / warmup
        share = (step - warmup - 1) / max(1, self.num_steps - warmup)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * share))

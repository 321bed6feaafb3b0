"""When to stop: after several looks at the validation loss without a better one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStopping:
    """What was seen at the looks so far. Without patience it records the best and never stops."""

    patience: int | None
    best_loss: float = math.inf
    best_step: int = 0
    num_looks_since: int = 0

    def look(self, step: int, loss: float) -> bool:
        """Record a look; tells whether it is the best so far."""
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.num_looks_since = loss, step, 0
            return True
        self.num_looks_since += 1
        return False

    @property
    def is_due(self) -> bool:
        """Whether training should stop now."""
        return self.patience is not None and self.num_looks_since >= self.patience

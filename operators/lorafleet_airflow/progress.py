"""Progress of a training as lines of the task's log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafleet_pipeline.training.progress import TrainingProgress


class ProgressLog:
    """Writes what a person wants to read: every phase, the first and last step, each validation loss, and the
    steps between at most every few seconds."""

    def __init__(self, log: Any, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._phase: str | None = None
        self._written_at: float | None = None

    def __call__(self, progress: TrainingProgress) -> None:
        """Take one report."""
        now = self._clock()
        due = self._written_at is None or now - self._written_at >= self._every_s
        new_phase = progress.phase.value != self._phase
        if due or new_phase or progress.step == progress.num_steps or progress.validation_loss is not None:
            self._log.info("%s", progress)
            self._phase, self._written_at = progress.phase.value, now

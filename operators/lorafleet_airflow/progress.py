"""Progress of a step as lines of the task's log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorafleet_pipeline.evaluation.progress import EvaluationProgress
    from lorafleet_pipeline.training.progress import TrainingProgress


class ProgressLog:
    """Writes what a person wants to read: every change of stage, what is marked, and the rest every few seconds."""

    def __init__(self, log: Any, *, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._stage: object = None
        self._written_at: float | None = None

    def training(self, progress: TrainingProgress) -> None:
        """Take a report of a training: its last step and each validation loss are always written."""
        marked = progress.step == progress.num_steps or progress.validation_loss is not None
        self._write(progress, progress.phase, marked=marked)

    def evaluation(self, progress: EvaluationProgress) -> None:
        """Take a report of an evaluation: the last answer of each contestant is always written."""
        self._write(progress, progress.contestant or "loading", marked=progress.done == progress.total)

    def _write(self, progress: object, stage: object, *, marked: bool) -> None:
        now = self._clock()
        due = self._written_at is None or now - self._written_at >= self._every_s
        if due or marked or stage != self._stage:
            self._log.info("%s", progress)
            self._stage, self._written_at = stage, now

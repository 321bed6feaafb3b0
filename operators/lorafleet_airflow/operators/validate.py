"""The step that checks a dataset before anything is trained on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorafleet_airflow.operators.step import AdapterStepOperator, StepInput


class ValidateDatasetOperator(AdapterStepOperator):
    """
    Load, split and validate an adapter's dataset; Data Docs go to the platform's docs address.

    A critical finding fails the task at once and names the expectation, never row values. It begins the run: the
    spec with this run's overrides is written to the run folder, for the steps after it.
    """

    begins_run = True

    def run_step(self, step: StepInput) -> dict[str, Any]:
        """Validate."""
        from lorafleet_pipeline.datasets.step import ValidationProgress, validate

        def tell(progress: ValidationProgress) -> None:
            self.log.info("%s (%d of %d)", progress.stage, progress.done + 1, progress.total)

        with _chatter_left_out():
            report = validate(step.spec, step.run, step.settings, on_progress=tell)
        summary: dict[str, Any] = report.to_json()
        self.log.info("Dataset of %s is good for training", step.spec.name)
        return summary


@contextmanager
def _chatter_left_out() -> Iterator[None]:
    """Great Expectations tells a hundred things about itself at level INFO, which is that of a task's log."""
    logger = logging.getLogger("great_expectations")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)

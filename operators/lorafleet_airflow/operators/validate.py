"""The step that checks a dataset before anything is trained on it."""

from __future__ import annotations

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
        from lorafleet_pipeline.datasets.step import validate

        report = validate(step.spec, step.run, step.settings)
        summary: dict[str, Any] = report.to_json()
        self.log.info("Dataset of %s is good for training", step.spec.name)
        return summary

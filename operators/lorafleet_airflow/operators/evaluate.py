"""The step that compares a trained adapter with its base and with the champion."""

from __future__ import annotations

from typing import Any

from lorafleet_airflow.operators.step import AdapterStepOperator, StepInput
from lorafleet_airflow.progress import ProgressLog
from lorafleet_pipeline.run_folder import RunFolder


class EvaluateAdapterOperator(AdapterStepOperator):
    """
    Evaluate base, candidate and champion on the held-out split, and sign the gate's verdict.

    Works in a process of its own, which a retry finds again. A gate that did not pass is a result, not a failure:
    the version is registered with it, and the promotion fails.
    """

    _run: RunFolder | None = None

    def run_step(self, step: StepInput) -> dict[str, Any]:
        """Evaluate, or follow the evaluation that runs."""
        from lorafleet_pipeline.evaluation.step import evaluate

        self._run = step.run
        report = evaluate(step.spec, step.run, step.settings, on_progress=ProgressLog(self.log).evaluation)
        summary: dict[str, Any] = report.to_json()
        self.log.info("The gate of %s has %s: %s", step.spec.name, report.status.value, report.reason or "every check")
        return summary

    def on_kill(self) -> None:
        """End the evaluation; a later try begins it anew."""
        from lorafleet_pipeline.evaluation.step import cancel

        if self._run is not None:
            cancel(self._run)

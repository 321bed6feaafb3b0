"""The step that compares a trained adapter with its base and with the champion."""

from __future__ import annotations

from typing import Any

from lorafleet_airflow.operators.step import AdapterStepOperator, StepInput


class EvaluateAdapterOperator(AdapterStepOperator):
    """
    Evaluate base, candidate and champion on the held-out split, and sign the gate's verdict.

    A gate that did not pass is a result, not a failure: the version is registered with it, and the promotion fails.
    """

    def run_step(self, step: StepInput) -> dict[str, Any]:
        """Evaluate."""
        from lorafleet_pipeline.evaluation.step import evaluate

        report = evaluate(step.spec, step.run, step.settings)
        summary: dict[str, Any] = report.to_json()
        return summary

"""The step that puts an evaluated adapter into the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorafleet_airflow.links.mlflow import VERSION_URL_KEY, ModelVersionLink, version_url
from lorafleet_airflow.operators.step import AdapterStepOperator, StepInput


class RegisterAdapterOperator(AdapterStepOperator):
    """
    Register the adapter as a version in MLflow, with weights, manifest, gate report and tags.

    A retry finds the version that an earlier try registered for this run. The version is reported as an event of
    each asset in ``outlets``.
    """

    operator_extra_links = (ModelVersionLink(),)

    def run_step(self, step: StepInput) -> dict[str, Any]:
        """Register."""
        from lorafleet_pipeline.registry.publish import register

        version = register(step.spec, step.run, step.settings)
        summary: dict[str, Any] = version.to_json()
        url = version_url(step.settings.mlflow_url, version.name, version.version)
        step.context["ti"].xcom_push(key=VERSION_URL_KEY, value=url)
        self._report(step, {"adapter": version.name, "version": version.version, "digest": version.digest})
        self.log.info("%s version %d is registered: %s", version.name, version.version, url)
        return summary

    def _report(self, step: StepInput, extra: dict[str, Any]) -> None:
        outlets: Sequence[Any] = self.outlets or ()
        for asset in outlets:
            step.context["outlet_events"][asset].extra.update(extra)

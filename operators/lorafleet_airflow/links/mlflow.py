"""Buttons on a task that lead to its MLflow run, or to the version it registered.

An operator leaves the address in an XCom of its own when it knows it; the link reads that.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

RUN_URL_KEY = "mlflow_run_url"
VERSION_URL_KEY = "mlflow_version_url"


class MLflowRunLink(BaseOperatorLink):
    """Leads to the MLflow run of a pipeline run."""

    name = "MLflow run"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Address of the run; empty where the task made none."""
        return XCom.get_value(key=RUN_URL_KEY, ti_key=ti_key) or ""


class ModelVersionLink(BaseOperatorLink):
    """Leads to the version in the registry."""

    name = "Registered version"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Address of the version; empty where the task registered none."""
        return XCom.get_value(key=VERSION_URL_KEY, ti_key=ti_key) or ""


def run_url(mlflow_url: str, run_id: str) -> str:
    """Address of a run in MLflow's interface; it leads there without naming the experiment."""
    return f"{mlflow_url.rstrip('/')}/#/runs/{run_id}"


def version_url(mlflow_url: str, name: str, version: int) -> str:
    """Address of a registered version in MLflow's interface."""
    return f"{mlflow_url.rstrip('/')}/#/models/{name}/versions/{version}"

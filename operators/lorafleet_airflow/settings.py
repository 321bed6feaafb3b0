"""Names that the provider, its DAGs and whoever prepares an Airflow for them agree on, and the spec folder.

Everything about the platform itself (registry, storage, pods, secrets) is in `PlatformSettings`.
"""

from __future__ import annotations

import os
from pathlib import Path

REGISTRY_CONN_ID = "lorafleet_registry"
"""Default connection of the MLflow registry, of type `lorafleet_mlflow`."""

POD_CONN_ID = "lorafleet_pods"
"""Default connection of the serving pods, of type `lorafleet_pod`."""

REGISTRY_CONN_TYPE = "lorafleet_mlflow"
POD_CONN_TYPE = "lorafleet_pod"

TRAINING_POOL = "training"
"""Airflow pool that bounds how many trainings run at once; it must exist, or training tasks never start."""

TAG = "lorafleet"
"""Tag of every DAG of the platform."""

BROKEN_SPEC_TAG = "broken-spec"
"""Tag of a DAG that stands for a spec that could not be read."""


def adapters_folders(dag_file: str) -> tuple[Path, ...]:
    """Folders of the AdapterSpec files: `adapters` beside the DAG file, and `LORAFLEET_ADAPTERS_DIR` if it is set."""
    beside = Path(dag_file).resolve().parent / "adapters"
    given = os.environ.get("LORAFLEET_ADAPTERS_DIR")
    return (beside, Path(given).expanduser().resolve()) if given else (beside,)

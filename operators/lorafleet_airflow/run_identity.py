"""The pipeline run that a task belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafleet_pipeline.run_identity import run_key


def run_key_of(context: Mapping[str, Any]) -> str:
    """Key of the run that a task belongs to: every try of every task of one DAG run has the same."""
    instance = context["ti"]
    map_index = getattr(instance, "map_index", None)
    return run_key(instance.dag_id, instance.run_id, -1 if map_index is None else map_index)

"""Names by which Airflow and everyone who follows it find the same DAG and the same run folder."""

from __future__ import annotations

import hashlib
import re

DAG_PREFIX = "adapter_"
"""Each spec's DAG is named this and the adapter's name."""

_READABLE_LEN = 60


def dag_id(adapter: str) -> str:
    """Id of an adapter's DAG."""
    return f"{DAG_PREFIX}{adapter}"


def run_key(dag_id: str, run_id: str, map_index: int = -1) -> str:
    """Key of one DAG run, or of one mapped task of it; a safe file name, readable, and unique by its digest."""
    identity = f"{dag_id}\n{run_id}" + ("" if map_index < 0 else f"\n{map_index}")
    readable = re.sub(r"[^A-Za-z0-9_.+-]", "-", run_id)[:_READABLE_LEN]
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

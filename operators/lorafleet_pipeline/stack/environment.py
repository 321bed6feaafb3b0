"""The environment of the stack's processes: the user's, less what would lead a component astray.

Keys of a cloud account and settings of another Airflow or MLflow in the user's shell must not reach the
embedded services, and no component is given a secret that it does not need.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lorafleet_pipeline.stack.ports import LOOPBACK

_FOREIGN_PREFIXES = ("AIRFLOW_", "AWS_", "MLFLOW_", "_MLFLOW_", "S3_", "WEED_")
_SECRET_SUFFIXES = ("_TOKEN", "_KEY", "_SECRET")


def clean_environment(added: Mapping[str, str]) -> dict[str, str]:
    """The environment of a component: the user's without foreign settings and secrets, and what is added."""
    kept = {name: value for name, value in os.environ.items() if not _is_foreign(name)}
    kept["PYTHONUNBUFFERED"] = "1"
    # Components call each other on the loopback address, which a proxy could not reach.
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, (kept.get(name), LOOPBACK, "localhost")))
    # Airflow and MLflow start helpers by name, which stand beside the interpreter.
    kept["PATH"] = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), kept.get("PATH"))))
    return kept | dict(added)


def _is_foreign(name: str) -> bool:
    return name.startswith(_FOREIGN_PREFIXES) or (name.startswith("LORAFLEET_") and name.endswith(_SECRET_SUFFIXES))

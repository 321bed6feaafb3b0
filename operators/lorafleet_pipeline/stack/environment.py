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
    # Components call each other on the loopback address.
    kept |= loopback_without_proxy(kept)
    # Airflow and MLflow start helpers by name, which stand beside the interpreter.
    kept["PATH"] = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), kept.get("PATH"))))
    return kept | dict(added)


def loopback_without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY` and `no_proxy` as they are, and with this machine, which a proxy could not reach."""
    upper, lower = environ.get("NO_PROXY", ""), environ.get("no_proxy", "")
    # Where both are set, most clients ask the lower one alone; what stood in the other only must not be lost.
    return {"NO_PROXY": _with_loopback(upper or lower), "no_proxy": _with_loopback(lower or upper)}


def _with_loopback(hosts: str) -> str:
    named = [host.strip() for host in hosts.split(",") if host.strip()]
    # The star means every host only where it stands alone.
    return hosts if named == ["*"] else ",".join(dict.fromkeys((*named, LOOPBACK, "localhost")))


def _is_foreign(name: str) -> bool:
    return name.startswith(_FOREIGN_PREFIXES) or (name.startswith("LORAFLEET_") and name.endswith(_SECRET_SUFFIXES))

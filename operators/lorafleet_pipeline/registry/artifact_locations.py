"""Keeps whoever reaches MLflow's port out of the folders of the machine that MLflow runs on.

MLflow takes a local folder for an experiment's artifact location, and then writes below it and reads from it for
every caller. It does not know who calls: what is refused here is refused to all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_LOCAL = frozenset({"", "file"})
# `dbfs` may be mounted as a folder, and the others stand for wherever a run or a model lies.
_NOT_AN_OBJECT_STORE = _LOCAL | {"dbfs", "runs", "models"}


def refuse_local_locations() -> None:
    """Have the MLflow server of this process neither take nor open an artifact location on its own disk.

    An MLflow whose default artifact root is itself local, as one for development is, goes on as it is. Anywhere else
    (the embedded stack's root is on S3) a client that names a local folder is answered with status 400. A local folder
    that MLflow serves as its `--artifacts-destination` stays open: it is the server's own choice.
    """
    from mlflow.server import ARTIFACT_ROOT_ENV_VAR
    from mlflow.utils.uri import get_uri_scheme

    root = os.environ.get(ARTIFACT_ROOT_ENV_VAR, "")
    if get_uri_scheme(root) not in _LOCAL:
        _refuse_to_take(root)
        _refuse_to_open()


def _refuse_to_take(root: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.server import handlers
    from mlflow.utils.uri import get_uri_scheme

    validate = handlers._validate_storage_location_uri

    def validate_not_local(value: str, field_name: str) -> str:
        location: str = validate(value, field_name)
        # The scheme as MLflow itself will read it when it opens the location, not as it looks.
        if get_uri_scheme(location) in _NOT_AN_OBJECT_STORE:
            raise MlflowException.invalid_parameter_value(
                f"'{field_name}' is {location!r}, which is no address of an object store, and this server keeps no "
                f"artifacts in folders: name an address such as {root.rstrip('/') + '/NAME'!r}, or none for the default"
            )
        return location

    # MLflow asks this of what it parsed, on every route; a look at the request would have to parse as it does.
    handlers._validate_storage_location_uri = validate_not_local


def _refuse_to_open() -> None:
    """Close the other ways to a folder: experiments from before, tags of traces, sources of versions."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact import artifact_repository_registry
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def open_served(artifact_uri: str, **uris: Any) -> LocalArtifactRepository:
        if not _is_served(artifact_uri):
            raise MlflowException.invalid_parameter_value(
                f"the artifact location {artifact_uri!r} is a folder, and this server opens none: copy its files to an "
                "object store, and log them in an experiment whose artifact location is there"
            )
        return LocalArtifactRepository(artifact_uri, **uris)

    for scheme in _LOCAL:
        artifact_repository_registry._artifact_repository_registry.register(scheme, open_served)


def _is_served(artifact_uri: str) -> bool:
    from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR, SERVE_ARTIFACTS_ENV_VAR
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import get_uri_scheme

    destination = os.environ.get(ARTIFACTS_DESTINATION_ENV_VAR, "")
    if not os.environ.get(SERVE_ARTIFACTS_ENV_VAR) or not destination or get_uri_scheme(destination) not in _LOCAL:
        return False
    served = Path(local_file_uri_to_path(destination)).resolve()
    return Path(local_file_uri_to_path(artifact_uri)).resolve().is_relative_to(served)

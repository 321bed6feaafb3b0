"""Registration: an evaluated adapter becomes a version of its registered model, whole or not at all.

Order makes it so. The files are uploaded and read back first; then one call creates the version with all
its tags. What a killed process leaves is at most a logged model without a version: the next try of the same
run finds it by its run key and goes on with it, and a day later any run of the adapter removes it.

A version whose gate failed is registered too, so that people see it and its reason; pods refuse it, and
promotion does unless someone waives the gate.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from lorafleet_contract.exceptions import RegistryNotFound
from lorafleet_contract.registry import ModelVersion
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import RegistrationError
from lorafleet_pipeline.registry.prepared_version import PreparedVersion
from lorafleet_pipeline.registry.upload import VersionUpload
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.storage import disk_errors
from lorafleet_pipeline.training.result import TrainingResult


@dataclass(frozen=True)
class RegisteredVersion:
    """A registered version. `is_new` is false where the run found it registered already."""

    name: str
    version: int
    digest: str
    uri: str
    mlflow_run_id: str | None
    gate_status: str
    is_new: bool = True

    def to_json(self) -> dict[str, Any]:
        """The version as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RegisteredVersion:
        """Read it back."""
        return cls(**data)


def register(spec: AdapterSpec, run: RunFolder, settings: PlatformSettings) -> RegisteredVersion:
    """Register the adapter of a run, or return the version that it was registered as before.

    Raises:
        RegistrationError: the run is not ready, or the version could not be registered whole.
        RegistryError: the registry is away or refuses.
        StorageError: a file could not be uploaded.
    """
    if not run.training_result.is_file():
        raise RegistrationError(f"{run.training_result} is missing: run `lorafleet train` for this run")
    training = TrainingResult.read(run.training_result)
    with disk_errors(run.path), _alone(run):
        found = _existing(spec.name, run, training, settings)
        if found is None:
            prepared = PreparedVersion.read(run, training, settings.require_gate_key())
            if prepared.manifest.name != spec.name:
                raise RegistrationError(f"{run.path} holds adapter {prepared.manifest.name!r}, not {spec.name!r}")
            version = VersionUpload(prepared, settings).publish()
            found = _registered(settings.registry().get_version(spec.name, version), settings, is_new=True)
        run.registration.write_text(json.dumps(found.to_json(), indent=2))
    return found


def _existing(
    name: str, run: RunFolder, training: TrainingResult, settings: PlatformSettings
) -> RegisteredVersion | None:
    registry = settings.registry()
    if training.skipped_version is not None:
        try:
            return _registered(registry.get_version(name, training.skipped_version), settings, is_new=False)
        except RegistryNotFound as error:
            raise RegistrationError(
                f"training was skipped for version {training.skipped_version} of {name}, which is gone: "
                "train with --force"
            ) from error
    for item in registry.search_versions(name):
        if item.tags.get(Tag.RUN_KEY) == run.run_key and item.tags.get(Tag.LORA_DIGEST) == training.adapter_digest:
            return _registered(item, settings, is_new=False)
    return None


def _registered(item: ModelVersion, settings: PlatformSettings, *, is_new: bool) -> RegisteredVersion:
    return RegisteredVersion(
        name=item.name,
        version=item.version,
        digest=item.tags[Tag.LORA_DIGEST],
        uri=settings.registry().get_artifact_address(item.name, item.version),
        mlflow_run_id=item.run_id or None,
        gate_status=item.tags.get(Tag.GATE_STATUS, ""),
        is_new=is_new,
    )


@contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
    """Keep two processes of one run apart: a retry may begin while the first try still writes."""
    with (run.path / ".register.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

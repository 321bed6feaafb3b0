"""Puts a version's files on S3 through a logged model of MLflow, and creates the version last."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import files_digest
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import PipelineError, RegistrationError
from lorafleet_pipeline.registry.flavour import FILES, save_model
from lorafleet_pipeline.registry.model_card import write_model_card
from lorafleet_pipeline.registry.prepared_version import PreparedVersion
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.storage import Storage, is_s3

_logger = logging.getLogger(__name__)

MODEL_TYPE = "lora-adapter"
REGISTERED_AS = "lora.version"
"""Tag of a logged model: the version that was made of it. What has it is no orphan, should the version be deleted."""
ORPHAN_AGE_S = 24 * 3600.0
"""Age from which a registration that is not complete counts as given up."""


class VersionUpload:
    """One version on its way into the registry."""

    def __init__(self, prepared: PreparedVersion, settings: PlatformSettings) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # MLflow's client takes credentials from nowhere else.
        os.environ.update(settings.mlflow_credentials())
        from mlflow import MlflowClient

        self._prepared = prepared
        self._storage = Storage(settings.s3)
        self._mlflow = MlflowClient(settings.mlflow_url)
        self._name = prepared.manifest.name
        self._made_registered_model = False
        self._may_hold_files = False
        """Whether files of the logged model may stand on S3."""

    def publish(self) -> int:
        """Upload, check, and create the version; returns its number.

        Raises:
            RegistrationError: MLflow refused or is away, or a file did not arrive.
            StorageError: S3 refused or is away.

        After either nothing is left behind, but for a logged model without a version, and its files, where MLflow or
        S3 went away in the middle: the next try, or a later sweep, finds them.
        """
        from mlflow.exceptions import MlflowException

        model, is_published = None, False
        try:
            experiment = self._experiment()
            self._sweep(experiment)
            model = self._logged_model(experiment)
            self._put_files(model)
            self._mlflow.finalize_logged_model(model.model_id, "READY")
            version = self._create_version(model)
            is_published = True
        except MlflowException as error:
            raise RegistrationError(f"{self._name} could not be registered: {_first_line(error)}") from error
        finally:
            # Whatever it was, an interruption by a person or by Airflow among it.
            if not is_published:
                self._discard(model, may_hold_files=self._may_hold_files)
        self._note_registered(model, version)
        return version

    def _note_registered(self, model: Any, version: int) -> None:
        """Have no sweep look for the version of a logged model again."""
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow.set_logged_model_tags(model.model_id, {REGISTERED_AS: str(version)})
        except MlflowException as error:
            # The version stands, whether or not this is noted; a later sweep finds it, and notes it then.
            _logger.warning("logged model %s could not be tagged: %s", model.model_id, _first_line(error))

    def _sweep(self, experiment: str) -> None:
        """Remove what runs that were killed and never tried again left long ago: logged models without a version."""
        given_up = f"name = '{self._name}' AND creation_timestamp < {round((time.time() - ORPHAN_AGE_S) * 1000)}"
        for model in self._mlflow.search_logged_models([experiment], filter_string=given_up):
            key = model.tags.get(Tag.RUN_KEY.value)
            if key not in (None, self._prepared.run_key) and REGISTERED_AS not in model.tags:
                _logger.info("removing logged model %s, which run %s left incomplete", model.model_id, key)
                self._discard(model, may_hold_files=True)

    def _logged_model(self, experiment: str) -> Any:
        """The logged model that an earlier try of this run left, or a new one."""
        prepared = self._prepared
        wanted = (
            f"tags.`{Tag.RUN_KEY}` = '{prepared.run_key}' AND tags.`{Tag.LORA_DIGEST}` = '{prepared.manifest.digest}'"
        )
        left = self._mlflow.search_logged_models([experiment], filter_string=wanted, max_results=1)
        if left:
            _logger.info("going on with logged model %s, which an earlier try left", left[0].model_id)
            self._may_hold_files = True
            return left[0]
        return self._mlflow.create_logged_model(
            experiment,
            name=self._name,
            source_run_id=prepared.mlflow_run_id,
            tags={Tag.RUN_KEY.value: prepared.run_key, Tag.LORA_DIGEST.value: prepared.manifest.digest},
            params={"rank": str(prepared.manifest.rank), "alpha": f"{prepared.manifest.alpha:g}"},
            model_type=MODEL_TYPE,
        )

    def _experiment(self) -> str:
        if self._prepared.mlflow_run_id is not None:
            return str(self._mlflow.get_run(self._prepared.mlflow_run_id).info.experiment_id)
        from lorafleet_pipeline.training.tracking import experiment_name

        known = self._mlflow.get_experiment_by_name(experiment_name(self._name))
        return str(known.experiment_id if known else self._mlflow.create_experiment(experiment_name(self._name)))

    def _put_files(self, model: Any) -> None:
        from mlflow.models import Model

        prepared, location = self._prepared, str(model.artifact_location)
        if not is_s3(location):
            raise RegistrationError(
                f"the registry keeps artifacts at {location}, which pods cannot read: start MLflow with "
                "--default-artifact-root s3://BUCKET/PATH --no-serve-artifacts"
            )
        with tempfile.TemporaryDirectory(prefix="lorafleet-register-") as scratch:
            sent, received = Path(scratch) / "sent", Path(scratch) / "received"
            mlflow_model = Model(
                artifact_path=location,
                model_uuid=model.model_id,
                model_id=model.model_id,
                run_id=prepared.mlflow_run_id,
            )
            save_model(sent, mlflow_model, prepared.files, write_model_card(prepared.manifest, prepared.gate))
            self._storage.list(location)  # Where S3 does not answer, or the keys are wrong, nothing is left there.
            self._may_hold_files = True
            self._storage.upload_folder(sent, location)
            for name in FILES:
                self._storage.download(f"{location}/{name}", received / name)
                if files_digest(sent, [name]) != files_digest(received, [name]):
                    raise RegistrationError(f"{location}/{name} is not what was sent: check the storage and try again")

    def _create_version(self, model: Any) -> int:
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        prepared = self._prepared
        if prepared.mlflow_run_id is not None:
            run = self._mlflow.get_run(prepared.mlflow_run_id)
            known = {output.model_id for output in (run.outputs.model_outputs if run.outputs else ())}
            if model.model_id not in known:
                self._mlflow.log_outputs(prepared.mlflow_run_id, [LoggedModelOutput(model.model_id, step=0)])
        try:
            self._mlflow.create_registered_model(self._name)
            self._made_registered_model = True
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._mlflow.create_model_version(
            self._name,
            model.model_uri,
            run_id=prepared.mlflow_run_id,
            tags=prepared.tags(),
            description=_description(prepared),
            model_id=model.model_id,
            await_creation_for=0,
        )
        return int(version.version)

    def _discard(self, model: Any, *, may_hold_files: bool) -> None:
        """Remove what was made, as far as the servers still answer; what stays is taken up by the next try."""
        from mlflow.exceptions import MlflowException

        if model is None:
            return
        try:
            # Under whatever name it may go by now.
            versions = self._mlflow.search_model_versions(f"source_path='{model.model_uri}'")
            if versions:  # Created after all, and only the answer was lost: the next try finds it.
                self._note_registered(model, int(versions[0].version))
                return
            if self._made_registered_model and not self._mlflow.search_model_versions(f"name='{self._name}'"):
                self._mlflow.delete_registered_model(self._name)
            # The files first: as long as the logged model is there, a later try or a sweep finds them by it.
            if may_hold_files and is_s3(str(model.artifact_location)):
                self._storage.delete_folder(str(model.artifact_location))
            self._mlflow.delete_logged_model(model.model_id)
        except (MlflowException, PipelineError) as error:
            _logger.warning("logged model %s could not be removed: %s", model.model_id, _first_line(error))


def _description(prepared: PreparedVersion) -> str:
    document = prepared.gate.document
    return (
        f"{document.get('metric', prepared.manifest.metric)}: base {document.get('base')}, adapter "
        f"{document.get('candidate')}, lift {document.get('lift')}; gate {prepared.gate.status.value}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

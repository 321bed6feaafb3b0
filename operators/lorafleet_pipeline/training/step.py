"""The training step: skipped when nothing changed, else one process that is started, or found and followed."""

from __future__ import annotations

import logging

from lorafleet_pipeline.datasets.preparation import read_prepared
from lorafleet_pipeline.exceptions import TrainingError
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec, load_spec
from lorafleet_pipeline.storage import disk_errors
from lorafleet_pipeline.training.job import OnProgress, TrainingIdentity, TrainingJob
from lorafleet_pipeline.training.result import TrainingResult
from lorafleet_pipeline.training.unchanged import find_unchanged

logger = logging.getLogger(__name__)


def train(
    spec: AdapterSpec,
    run: RunFolder,
    settings: PlatformSettings,
    on_progress: OnProgress | None = None,
    force: bool = False,
) -> TrainingResult:
    """Train the adapter of a run. A retry follows the process that runs, or resumes, or finds the result.

    Args:
        spec: the adapter.
        run: its run folder, with a validated dataset.
        settings: where the registry is; without one nothing is tracked and nothing skipped.
        on_progress: called with each report.
        force: train even where a version of the same spec, data and base is registered. A retry of the same run
            goes on with it all the same.

    Raises:
        DatasetUnreadable: the run has no validated dataset.
        TrainingDiverged: the loss became non-finite.
        TrainingLost: the process died; the next call resumes from its last checkpoint.
        TrainingCancelled: someone cancelled it.
        TrainingError: anything else that ended it.
        RegistryError: the registry could not be asked about earlier versions.
        StorageError: the run folder cannot be written, or the gate report of an earlier version not be read.
    """
    with disk_errors(run.path):
        return _train(spec, run, settings, on_progress, force=force)


def _train(
    spec: AdapterSpec, run: RunFolder, settings: PlatformSettings, on_progress: OnProgress | None, *, force: bool
) -> TrainingResult:
    _require_same_spec(spec, run)
    identity = TrainingIdentity(spec.spec_digest, read_prepared(run).digest)
    job = TrainingJob(run)
    if not job.is_running:
        finished = job.result(identity)
        if finished is not None:
            return finished
        unchanged = None if force or not settings.mlflow_url else find_unchanged(spec, identity, settings)
        if unchanged is not None:
            logger.info(
                "training of %s is skipped: version %s has the same spec and data", spec.name, unchanged.skipped_version
            )
            job.record(unchanged)
            return unchanged
    if not job.start(settings, identity):
        logger.info("following the training that runs in %s as process %s", run.training, job.pid)
    return job.follow(on_progress)


def _require_same_spec(spec: AdapterSpec, run: RunFolder) -> None:
    """The process reads the spec from the run folder, where the validation left it."""
    if not run.spec_file.is_file():
        run.path.mkdir(parents=True, exist_ok=True)
        run.spec_file.write_text(spec.to_yaml(), encoding="utf-8")
    elif load_spec(run.spec_file).spec_digest != spec.spec_digest:
        raise TrainingError(f"the spec of {spec.name} has changed since {run.path} was validated: validate again")

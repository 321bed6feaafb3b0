"""The evaluation step: one process that compares, found again by a retry; or the report of a version that is known."""

from __future__ import annotations

import json
import shutil

from lorafleet_contract.exceptions import RegistryNotFound, SignatureInvalid
from lorafleet_contract.manifest import GATE_REPORT_FILE
from lorafleet_contract.signature import verify
from lorafleet_pipeline.evaluation.progress import EvaluationProgress, OnProgress
from lorafleet_pipeline.evaluation.report import EvaluationReport
from lorafleet_pipeline.exceptions import EvaluationError
from lorafleet_pipeline.registry.gate_report import GateReport
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec, load_spec
from lorafleet_pipeline.storage import Storage, disk_errors
from lorafleet_pipeline.training.process import StepProcess
from lorafleet_pipeline.training.result import TrainingResult
from lorafleet_pipeline.training.worker import StepFiles

MODULE = "lorafleet_pipeline.evaluation"


def evaluate(
    spec: AdapterSpec, run: RunFolder, settings: PlatformSettings, on_progress: OnProgress | None = None
) -> EvaluationReport:
    """Compare the run's adapter with base and champion, and write manifest and signed gate report.

    A gate that did not pass is a result, not an error. A retry follows the process that runs, or finds its report.

    Raises:
        EvaluationError: the run has no trained adapter, or the comparison was not possible.
        InvalidSetting: there is no key to sign the gate report with.
        RegistryError: the registry could not be asked for the champion.
        StorageError: the champion could not be fetched, or the run folder cannot be written.
        TrackingUnavailable: MLflow does not take the metrics.
    """
    with disk_errors(run.path):
        return _evaluate(spec, run, settings, on_progress)


def _evaluate(
    spec: AdapterSpec, run: RunFolder, settings: PlatformSettings, on_progress: OnProgress | None
) -> EvaluationReport:
    if not run.training_result.is_file():
        raise EvaluationError(f"{run.training_result} is missing: run `lorafleet train` for this run")
    training = TrainingResult.read(run.training_result)
    if training.skipped_version is not None:
        return _report_of_version(spec.name, training.skipped_version, settings)
    settings.require_gate_key()
    if training.spec_digest != spec.spec_digest or load_spec(run.spec_file).spec_digest != spec.spec_digest:
        raise EvaluationError(f"the spec of {spec.name} has changed since its adapter was trained: train again")
    files = evaluation_files(run)
    process = StepProcess(files, MODULE, [str(run.path)], lost=EvaluationError)
    if not process.is_running:
        finished = _finished(run, training, settings)
        if finished is not None:
            return finished
    process.start(settings.environ(), lambda: _prepare(run, process))
    process.follow(None if on_progress is None else lambda report: on_progress(EvaluationProgress.from_json(report)))
    return EvaluationReport.read(files.result)


def cancel(run: RunFolder) -> bool:
    """End the evaluation of a run; the next one begins anew. False when none runs."""
    process = StepProcess(evaluation_files(run), MODULE, [str(run.path)], lost=EvaluationError)
    return process.cancel(EvaluationError(f"the evaluation in {run.evaluation} was cancelled"))


def evaluation_files(run: RunFolder) -> StepFiles:
    """Files of the evaluation process."""
    return StepFiles(run.evaluation, result_name=run.evaluation_report.name)


def _prepare(run: RunFolder, process: StepProcess) -> None:
    """An evaluation begins anew: what it costs is too little for checkpoints."""
    process.clear()
    shutil.rmtree(run.gate_report.parent, ignore_errors=True)
    run.manifest.unlink(missing_ok=True)


def _finished(run: RunFolder, training: TrainingResult, settings: PlatformSettings) -> EvaluationReport | None:
    """The report of an earlier try, if it is about this adapter and signed with today's key."""
    if not all(path.is_file() for path in (run.evaluation_report, run.gate_report, run.manifest)):
        return None
    try:
        verify(json.loads(run.gate_report.read_text()), settings.require_gate_key())
    except SignatureInvalid:
        return None
    report = EvaluationReport.read(run.evaluation_report)
    return report if report.digest == training.adapter_digest else None


def _report_of_version(name: str, version: int, settings: PlatformSettings) -> EvaluationReport:
    try:
        address = settings.registry().get_artifact_address(name, version)
    except RegistryNotFound as error:
        raise EvaluationError(
            f"training was skipped for version {version} of {name}, which is gone: train with --force"
        ) from error
    text = Storage(settings.s3).read_bytes(f"{address}/{GATE_REPORT_FILE}")
    report = GateReport.read(text, settings.require_gate_key())
    return EvaluationReport.from_json({**report.document, "skipped_version": version})

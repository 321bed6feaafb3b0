"""The training of one run folder, whoever started it: start, follow, cancel, read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from lorafleet_pipeline.exceptions import TrainingCancelled, TrainingError, TrainingLost
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.training.process import StepProcess
from lorafleet_pipeline.training.progress import TrainingProgress
from lorafleet_pipeline.training.result import TrainingResult
from lorafleet_pipeline.training.worker import StepFiles, write_json

MODULE = "lorafleet_pipeline.training"

OnProgress = Callable[[TrainingProgress], None]


@dataclass(frozen=True)
class TrainingIdentity:
    """What is trained on what: state left by another spec or dataset is of no use."""

    spec_digest: str
    dataset_digest: str


class TrainingJob:
    """The one training process that a run folder may have."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._files = StepFiles(run.training)
        self._identity_file = run.training / "job.json"
        self._process = StepProcess(self._files, MODULE, [str(run.path)], lost=TrainingLost)

    @property
    def is_running(self) -> bool:
        """Whether a training process works in the folder now."""
        return self._process.is_running

    @property
    def pid(self) -> int | None:
        """Id of the training process."""
        return self._process.pid

    @property
    def attempt(self) -> str:
        """Identity of this training, kept over restarts and lost when it is begun anew."""
        return str(self._state()["attempt"]) if self._identity_file.is_file() else "by-hand"

    def start(self, settings: PlatformSettings, identity: TrainingIdentity) -> bool:
        """Start the process, from the last checkpoint if there is one; False when one runs already.

        Raises:
            TrainingError: one runs already, of another spec or dataset.
        """
        started = self._process.start(settings.environ(), lambda: self._prepare(identity))
        if not started and self._known_identity() != identity:
            raise TrainingError(
                f"a training of another spec or dataset runs in {self._run.training}: wait for it, cancel it, or "
                "choose another run key"
            )
        return started

    def follow(self, on_progress: OnProgress | None = None) -> TrainingResult:
        """Wait for the result, passing on progress.

        Raises:
            TrainingError: what ended the training, as the process raised it.
        """
        passed_on = None if on_progress is None else lambda report: on_progress(TrainingProgress.from_json(report))
        self._process.follow(passed_on)
        return TrainingResult.read(self._files.result)

    def cancel(self) -> bool:
        """End the training; its checkpoints stay. False when none runs."""
        return self._process.cancel(TrainingCancelled(f"the training in {self._run.training} was cancelled"))

    def progress(self) -> TrainingProgress | None:
        """The latest progress, if there is any."""
        report = self._process.last_report()
        return None if report is None else TrainingProgress.from_json(report)

    def result(self, identity: TrainingIdentity) -> TrainingResult | None:
        """The result of a finished training of this identity, if its adapter is still there."""
        if not self._files.result.is_file() or self._known_identity() != identity:
            return None
        result = TrainingResult.read(self._files.result)
        return result if result.skipped_version is None and self._run.adapter_folder.is_dir() else None

    def record(self, result: TrainingResult) -> None:
        """Leave a result that needed no training."""
        result.write(self._files.result)

    def _prepare(self, identity: TrainingIdentity) -> None:
        if self._known_identity() != identity:
            self._process.clear()
            write_json(self._identity_file, {**asdict(identity), "attempt": uuid.uuid4().hex})
        self._files.result.unlink(missing_ok=True)

    def _known_identity(self) -> TrainingIdentity | None:
        if not self._identity_file.is_file():
            return None
        state = self._state()
        return TrainingIdentity(state["spec_digest"], state["dataset_digest"])

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._identity_file.read_text())
        return state

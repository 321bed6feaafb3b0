"""The step that trains an adapter in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException

from lorafleet_airflow.links.mlflow import RUN_URL_KEY, MLflowRunLink, run_url
from lorafleet_airflow.operators.step import AdapterStepOperator, StepInput
from lorafleet_airflow.progress import ProgressLog
from lorafleet_pipeline.exceptions import TrainingCancelled
from lorafleet_pipeline.run_folder import RunFolder


class TrainAdapterOperator(AdapterStepOperator):
    """
    Train one adapter and follow it: step, loss, tokens/s and the time left go to the task's log.

    The training is a detached process that belongs to the run folder, not to this task. The step function takes a
    lock on the folder and starts the process only if none runs there, so that a retry, or a task on a restarted
    worker, follows the process that is there; a process that was lost is started again and resumes from its last
    checkpoint. Airflow's ``ResumableJobMixin`` is not used: it leaves a window between starting a job and
    remembering it in which a crash starts a second one, which the lock does not, and it needs Airflow 3.3.

    :param force: train even where a version of unchanged spec and data exists.
    :param dry_run: skip this task, and with it everything after it.
    """

    template_fields: Sequence[str] = (*AdapterStepOperator.template_fields, "force", "dry_run")
    operator_extra_links = (MLflowRunLink(),)

    def __init__(self, *, force: bool | str = False, dry_run: bool | str = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.force = force
        self.dry_run = dry_run
        self._run: RunFolder | None = None
        self._killed = False

    def run_step(self, step: StepInput) -> dict[str, Any]:
        """Train, or follow the training that runs."""
        from lorafleet_pipeline.training.step import train

        if _is_true(self.dry_run):
            raise AirflowSkipException("dry run: the dataset is valid, nothing is trained")
        self._run = step.run
        try:
            result = train(
                step.spec,
                step.run,
                step.settings,
                on_progress=ProgressLog(self.log).training,
                force=_is_true(self.force),
            )
        except TrainingCancelled as error:
            # A worker that is shut down cancels, too: only a cancellation by someone else is final.
            if self._killed:
                raise
            raise AirflowFailException(str(error)) from error
        summary: dict[str, Any] = result.to_json()
        if result.mlflow_run_id:
            url = run_url(step.settings.mlflow_url, result.mlflow_run_id)
            step.context["ti"].xcom_push(key=RUN_URL_KEY, value=url)
        return summary

    def on_kill(self) -> None:
        """Cancel the training; its checkpoints stay, and a later try resumes from them."""
        from lorafleet_pipeline.training.job import TrainingJob

        self._killed = True
        if self._run is not None:
            TrainingJob(self._run).cancel()


def _is_true(value: bool | str) -> bool:
    """A flag that may have come through a template as text."""
    return value if isinstance(value, bool) else value.strip().lower() in {"true", "1", "yes"}

"""The step operators: what they hand to the steps, what they give back, and how they fail.

The steps themselves are slow and tested on their own; here a table stands in for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from lorafleet_airflow.operators.approve import ApproveVersionOperator
from lorafleet_airflow.operators.evaluate import EvaluateAdapterOperator
from lorafleet_airflow.operators.register import RegisterAdapterOperator
from lorafleet_airflow.operators.train import TrainAdapterOperator
from lorafleet_airflow.operators.validate import ValidateDatasetOperator
from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.exceptions import DatasetRefused, TrainingCancelled, TrainingDiverged, TrainingLost
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.run_identity import run_key
from lorafleet_pipeline.spec import AdapterSpec
from tests.airflow.conftest import TaskInstance, WriteSpec

pytestmark = pytest.mark.usefixtures("called_by_hand", "platform")

Call = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a step returns."""

    name: str = "summaries"
    version: int = 4
    digest: str = "sha256:d"
    mlflow_run_id: str = "run1"
    status: GateStatus = GateStatus.PASSED
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}


Step = Callable[..., list[Call]]


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Step:
    """Puts a table in the place of a step: `step("training.step.train", error)` records its calls."""

    def put(name: str, error: Exception | None = None) -> list[Call]:
        calls: list[Call] = []

        def stand_in(spec: AdapterSpec, run: RunFolder, settings: object, **options: Any) -> Result:
            calls.append({"spec": spec, "run": run, "settings": settings, **options})
            if error is not None:
                raise error
            return Result()

        monkeypatch.setattr(f"lorafleet_pipeline.{name}", stand_in)
        return calls

    return put


def test_every_step_of_a_run_works_in_the_folder_of_the_run(
    step: Step, write_spec: WriteSpec, context: dict[str, Any], task_instance: TaskInstance
) -> None:
    path = str(write_spec())
    validated, evaluated = step("datasets.step.validate"), step("evaluation.step.evaluate")
    ValidateDatasetOperator(task_id="validate", spec=path).execute(context)
    EvaluateAdapterOperator(task_id="evaluate", spec=path).execute(context)
    key = run_key(task_instance.dag_id, task_instance.run_id)
    assert validated[0]["run"] == evaluated[0]["run"]
    assert (validated[0]["run"].adapter, validated[0]["run"].run_key) == ("summaries", key)


def test_mapped_tasks_have_a_folder_each(
    step: Step, write_spec: WriteSpec, context: dict[str, Any], task_instance: TaskInstance
) -> None:
    calls, path = step("training.step.train"), str(write_spec())
    for index in range(2):
        task_instance.map_index = index
        TrainAdapterOperator(task_id="train", spec=path).execute(context)
    assert calls[0]["run"] != calls[1]["run"]


def test_the_form_reaches_the_validation(step: Step, write_spec: WriteSpec, context: dict[str, Any]) -> None:
    calls = step("datasets.step.validate")
    overrides = {"training.steps": 3, "method.r": None}
    ValidateDatasetOperator(task_id="validate", spec=str(write_spec()), overrides=overrides).execute(context)
    assert calls[0]["spec"].training.steps == 3


def test_a_refused_dataset_fails_at_once_with_its_reason(
    step: Step, write_spec: WriteSpec, context: dict[str, Any]
) -> None:
    step("datasets.step.validate", DatasetRefused("expect_column_values_to_not_be_null(text)"))
    with pytest.raises(AirflowFailException, match=r"not_be_null\(text\)"):
        ValidateDatasetOperator(task_id="validate", spec=str(write_spec())).execute(context)


def test_a_broken_spec_fails_at_once(step: Step, specs: Path, context: dict[str, Any]) -> None:
    (specs / "bad.yaml").write_text("name: bad")
    with pytest.raises(AirflowFailException, match=r"bad\.yaml"):
        ValidateDatasetOperator(task_id="validate", spec=str(specs / "bad.yaml")).execute(context)


def test_a_spec_renamed_since_the_dag_was_made_is_refused(
    step: Step, write_spec: WriteSpec, context: dict[str, Any]
) -> None:
    path = str(write_spec(name="other"))
    with pytest.raises(AirflowFailException, match=r"'other'.*'summaries'"):
        ValidateDatasetOperator(task_id="validate", spec=path, adapter="summaries").execute(context)


def test_what_a_step_gives_back_is_small_json(step: Step, write_spec: WriteSpec, context: dict[str, Any]) -> None:
    step("training.step.train")
    summary = TrainAdapterOperator(task_id="train", spec=str(write_spec())).execute(context)
    assert json.loads(json.dumps(summary)) == summary == {"name": "summaries", "version": 4}


def test_training_leaves_the_address_of_its_run(
    step: Step, write_spec: WriteSpec, context: dict[str, Any], task_instance: TaskInstance
) -> None:
    step("training.step.train")
    TrainAdapterOperator(task_id="train", spec=str(write_spec())).execute(context)
    assert task_instance.pushed["mlflow_run_url"] == "http://127.0.0.1:9/#/runs/run1"


@pytest.mark.parametrize(("value", "forced"), [(True, True), ("True", True), ("false", False), (False, False)])
def test_force_may_come_through_a_template(
    step: Step, write_spec: WriteSpec, context: dict[str, Any], value: bool | str, forced: bool
) -> None:
    calls = step("training.step.train")
    TrainAdapterOperator(task_id="train", spec=str(write_spec()), force=value).execute(context)
    assert calls[0]["force"] is forced


def test_a_dry_run_trains_nothing(step: Step, write_spec: WriteSpec, context: dict[str, Any]) -> None:
    calls = step("training.step.train")
    with pytest.raises(AirflowSkipException, match="dry run"):
        TrainAdapterOperator(task_id="train", spec=str(write_spec()), dry_run=True).execute(context)
    assert not calls


def test_a_lost_training_is_retried_and_a_diverged_one_is_not(
    step: Step, write_spec: WriteSpec, context: dict[str, Any]
) -> None:
    path = str(write_spec())
    step("training.step.train", TrainingLost("the process died"))
    with pytest.raises(TrainingLost):
        TrainAdapterOperator(task_id="train", spec=path).execute(context)
    step("training.step.train", TrainingDiverged("loss is nan at step 3"))
    with pytest.raises(AirflowFailException, match="step 3"):
        TrainAdapterOperator(task_id="train", spec=path).execute(context)


def test_a_training_that_someone_cancelled_is_not_begun_again(
    step: Step, write_spec: WriteSpec, context: dict[str, Any]
) -> None:
    step("training.step.train", TrainingCancelled("cancelled by hand"))
    with pytest.raises(AirflowFailException, match="cancelled by hand"):
        TrainAdapterOperator(task_id="train", spec=str(write_spec())).execute(context)


def test_a_killed_task_cancels_its_training_and_may_be_retried(
    write_spec: WriteSpec, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[RunFolder] = []

    class Job:
        def __init__(self, run: RunFolder) -> None:
            self.run = run

        def cancel(self) -> bool:
            cancelled.append(self.run)
            return True

    operator = TrainAdapterOperator(task_id="train", spec=str(write_spec()))

    def killed_meanwhile(spec: AdapterSpec, run: RunFolder, settings: object, **options: Any) -> Result:
        operator.on_kill()
        raise TrainingCancelled("the task was killed")

    monkeypatch.setattr("lorafleet_pipeline.training.job.TrainingJob", Job)
    monkeypatch.setattr("lorafleet_pipeline.training.step.train", killed_meanwhile)
    with pytest.raises(TrainingCancelled):
        operator.execute(context)
    assert [run.adapter for run in cancelled] == ["summaries"]


def test_a_registered_version_is_an_event_of_its_asset(
    step: Step, write_spec: WriteSpec, context: dict[str, Any], task_instance: TaskInstance
) -> None:
    from lorafleet_airflow.assets import versions_asset

    class Event:
        def __init__(self) -> None:
            self.extra: dict[str, Any] = {}

    asset, event = versions_asset("summaries"), Event()
    step("registry.publish.register")
    operator = RegisterAdapterOperator(task_id="register", spec=str(write_spec()), outlets=[asset])
    operator.execute({**context, "outlet_events": {asset: event}})
    assert event.extra == {"adapter": "summaries", "version": 4, "digest": "sha256:d"}
    assert task_instance.pushed["mlflow_version_url"].endswith("/#/models/summaries/versions/4")


def test_an_unanswered_approval_is_a_rejection() -> None:
    operator = ApproveVersionOperator(task_id="approve", adapter="a", version=1, subject="Promote?")
    assert operator.defaults == ["Reject"]
    assert operator.response_timeout is not None
    assert {"adapter", "version", "subject", "body"} <= set(operator.template_fields)

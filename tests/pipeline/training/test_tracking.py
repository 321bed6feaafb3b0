"""MLflow runs of trainings, on a real server."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import TrackingUnavailable, TrainingCancelled
from lorafleet_pipeline.stack.ports import free_port
from lorafleet_pipeline.training import tracking
from lorafleet_pipeline.training.step import train
from lorafleet_pipeline.training.tracking import Tracking, experiment_name, log_final_metrics
from tests.conftest import MLflowFactory
from tests.pipeline.training.conftest import SpecFactory
from tests.pipeline.training.prepared_run import make_run, make_settings
from tests.services import RunningMLflow
from tests.waiting import wait_for


def _name() -> str:
    return f"adapter-{uuid.uuid4().hex[:8]}"


def test_training_is_one_run_with_its_curve_and_its_facts(
    mlflow_server: RunningMLflow, spec_of: SpecFactory, tmp_path: Path
) -> None:
    spec = spec_of(name=_name())
    platform = make_settings(tmp_path, mlflow_server.url)
    result = train(spec, make_run(spec, platform, "monday"), platform)
    assert result.mlflow_run_id is not None
    client = MlflowClient(mlflow_server.url)
    run = client.get_run(result.mlflow_run_id)
    assert client.get_experiment(run.info.experiment_id).name == experiment_name(spec.name)
    assert run.info.status == "FINISHED"
    assert run.data.tags[Tag.RUN_KEY] == "monday"
    assert run.data.tags[Tag.DATASET_DIGEST] == result.dataset_digest
    assert run.data.params["training.learning_rate"] == "0.02"
    curve = client.get_metric_history(result.mlflow_run_id, "train/loss")
    assert sorted(point.step for point in curve) == list(range(1, 13))
    assert run.data.metrics["train/loss"] == result.loss
    assert run.data.metrics["validation/loss"] == result.validation_loss


def test_interrupted_run_is_found_again_and_a_new_attempt_is_another_run(mlflow_server: RunningMLflow) -> None:
    name, client = _name(), MlflowClient(mlflow_server.url)
    interrupted = Tracking(mlflow_server.url, name, "key", "first")

    def train_a_step() -> None:
        with interrupted:
            interrupted.log_metrics({"train/loss": 2.0}, 1)
            raise TrainingCancelled("enough")

    with pytest.raises(TrainingCancelled):
        train_a_step()
    assert client.get_run(interrupted.run_id).info.status == "KILLED"
    with Tracking(mlflow_server.url, name, "key", "first") as resumed:
        assert client.get_run(resumed.run_id).info.status == "RUNNING"
        resumed.log_metrics({"train/loss": 1.0}, 2)
    assert resumed.run_id == interrupted.run_id
    assert [point.value for point in client.get_metric_history(resumed.run_id, "train/loss")] == [2.0, 1.0]
    with Tracking(mlflow_server.url, name, "key", "second") as other:
        assert other.run_id != resumed.run_id


def test_system_metrics_are_recorded(mlflow_server: RunningMLflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_SYSTEM_METRICS_EVERY_S", 0.2)
    client = MlflowClient(mlflow_server.url)
    with Tracking(mlflow_server.url, _name(), "key", "only") as run:
        wait_for(
            lambda: "system/cpu_utilization_percentage" in client.get_run(run.run_id).data.metrics, "system metrics", 30
        )


def test_metrics_wait_while_the_server_is_away(mlflow_factory: MLflowFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_FLUSH_EVERY_S", 0.0)
    server = mlflow_factory()
    with Tracking(server.url, _name(), "key", "only") as run:
        server.component.stop()
        started = time.monotonic()
        for step in (1, 2, 3):
            run.log_metrics({"train/loss": float(step)}, step)
        assert time.monotonic() - started < 30
        server.component.start()
        server.component.wait_ready()
    history = MlflowClient(server.url).get_metric_history(run.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_server_that_stays_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE_S", 0.0)
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingUnavailable, match=rf"{url}.*LORAFLEET_MLFLOW_URL"):
        log_final_metrics(url, "some-run", {"eval/lift": 0.1})

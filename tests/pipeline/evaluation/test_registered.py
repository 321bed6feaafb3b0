"""What a registered version changes: training is skipped for it, and a champion is compared with."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.datasets.preparation import read_prepared
from lorafleet_pipeline.evaluation.champion import fetch_champion
from lorafleet_pipeline.evaluation.comparison import Comparison
from lorafleet_pipeline.evaluation.report import EvaluationReport
from lorafleet_pipeline.evaluation.step import evaluate
from lorafleet_pipeline.registry.publish import register
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings, S3Settings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.storage import Storage
from lorafleet_pipeline.training.job import TrainingIdentity
from lorafleet_pipeline.training.step import train
from lorafleet_pipeline.training.tracking import Tracking
from lorafleet_pipeline.training.unchanged import find_unchanged
from tests.pipeline.training.conftest import SpecFactory
from tests.pipeline.training.prepared_run import make_run, make_settings, trained_by_hand
from tests.services import RunningMLflow


@pytest.fixture
def platform(mlflow_server: RunningMLflow, tmp_path: Path) -> PlatformSettings:
    s3 = S3Settings(mlflow_server.s3.endpoint, mlflow_server.s3.access_key, mlflow_server.s3.secret_key)
    return replace(make_settings(tmp_path, mlflow_server.url), s3=s3)


@pytest.fixture
def spec(spec_of: SpecFactory) -> AdapterSpec:
    evaluation = {"limit": 24, "metric": "rougeL", "max_new_tokens": 4}
    name = f"adapter-{uuid.uuid4().hex[:8]}"
    return spec_of(name=name, gate={"min_lift": -1.0, "max_regression": 1.0}, evaluation=evaluation)


def _evaluated(
    spec: AdapterSpec, platform: PlatformSettings, key: str, seed: int
) -> tuple[RunFolder, EvaluationReport]:
    """A run with a random adapter, evaluated in this process."""
    run = make_run(spec, platform, key)
    result = trained_by_hand(run, spec, seed)
    with Tracking(platform.mlflow_url, spec.name, key, "only") as tracking:
        replace(result, mlflow_run_id=tracking.run_id).write(run.training_result)
    run.evaluation.mkdir()
    return run, Comparison(spec, run, platform, lambda progress: None).execute()


def test_unchanged_spec_and_data_are_not_trained_again(spec: AdapterSpec, platform: PlatformSettings) -> None:
    first, report = _evaluated(spec, platform, "first", seed=1)
    version = register(spec, first, platform)
    second = make_run(spec, platform, "second")
    skipped = train(spec, second, platform)
    assert skipped.skipped_version == version.version
    assert skipped.adapter_digest == version.digest
    assert not second.adapter_folder.exists()
    assert evaluate(spec, second, platform) == replace(report, skipped_version=version.version)
    assert register(spec, second, platform).version == version.version
    forced = train(spec, second, platform, force=True)
    assert forced.skipped_version is None
    assert second.adapter_folder.is_dir()


def test_a_version_that_differs_or_failed_does_not_stand_in(spec: AdapterSpec, platform: PlatformSettings) -> None:
    run, _ = _evaluated(spec, platform, "first", seed=1)
    identity = TrainingIdentity(spec.spec_digest, read_prepared(run).digest)
    registry = platform.registry()
    version = registry.get_version(spec.name, register(spec, run, platform).version)
    assert find_unchanged(spec, identity, registry) is not None
    for tag, value in ((Tag.GATE_STATUS, "failed"), (Tag.DATASET_DIGEST, "x"), (Tag.LORA_BASE_DIGEST, "x")):
        registry.set_version_tag(spec.name, version.version, tag, value)
        assert find_unchanged(spec, identity, registry) is None
        registry.set_version_tag(spec.name, version.version, tag, version.tags[tag])
    assert find_unchanged(spec, identity, registry) is not None
    registry.transition_stage(spec.name, version.version, Stage.ARCHIVED)
    assert find_unchanged(spec, identity, registry) is None


def test_candidate_is_compared_with_the_champion_and_mlflow_holds_the_figures(
    spec: AdapterSpec, platform: PlatformSettings
) -> None:
    first, before = _evaluated(spec, platform, "first", seed=1)
    version = register(spec, first, platform)
    platform.registry().set_alias(spec.name, Alias.CHAMPION, version.version)
    second, report = _evaluated(spec, platform, "second", seed=2)
    assert report.champion == before.candidate
    assert report.champion_version == version.version
    assert "no_regression" in [check.name for check in report.checks]
    run_id = register(spec, second, platform).mlflow_run_id
    assert run_id is not None
    found = MlflowClient(platform.mlflow_url).get_run(run_id).data.metrics
    assert found["eval/base"] == report.base
    assert found["eval/candidate"] == report.candidate
    assert found["eval/champion"] == report.champion
    assert found["eval/lift"] == report.lift


def test_a_champion_that_cannot_be_compared_is_said_to_be_so(
    spec: AdapterSpec, platform: PlatformSettings, tmp_path: Path
) -> None:
    run, report = _evaluated(spec, platform, "first", seed=1)
    base = platform.registry().get_version(spec.name, register(spec, run, platform).version).tags[Tag.LORA_BASE_DIGEST]

    def note(base_digest: str = base) -> str:
        found = fetch_champion(spec.name, base_digest, tmp_path / "champion", platform)
        assert (found.folder is not None) == (found.note == "version 1")
        return found.note

    assert note() == "there is no champion yet"
    platform.registry().set_alias(spec.name, Alias.CHAMPION, 1)
    assert note() == "version 1"
    assert "another base" in note("sha256:other")
    weights = f"{platform.registry().get_artifact_address(spec.name, 1)}/adapter/adapter_model.safetensors"
    Storage(platform.s3).write_bytes(weights, b"cut off")
    assert "do not have the digest" in note()
    assert report.champion is None

"""What a registered version changes: training is skipped for it, and a champion is compared with."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.manifest import GATE_REPORT_FILE
from lorafleet_contract.signature import sign
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
    assert find_unchanged(spec, identity, platform) is not None
    for tag, value in ((Tag.GATE_STATUS, "failed"), (Tag.DATASET_DIGEST, "x"), (Tag.LORA_BASE_DIGEST, "x")):
        registry.set_version_tag(spec.name, version.version, tag, value)
        assert find_unchanged(spec, identity, platform) is None
        registry.set_version_tag(spec.name, version.version, tag, version.tags[tag])
    assert find_unchanged(spec, identity, platform) is not None
    registry.transition_stage(spec.name, version.version, Stage.ARCHIVED)
    assert find_unchanged(spec, identity, platform) is None


def test_a_version_that_pods_refuse_does_not_stand_in(spec: AdapterSpec, platform: PlatformSettings) -> None:
    run, _ = _evaluated(spec, platform, "first", seed=1)
    identity = TrainingIdentity(spec.spec_digest, read_prepared(run).digest)
    number, registry = register(spec, run, platform).version, platform.registry()
    for state, stands_in in (("ready", True), ("failed", True), ("refused", False)):
        registry.set_version_tag(spec.name, number, Tag.SERVE_STATE, state)
        assert (find_unchanged(spec, identity, platform) is not None) is stands_in


def test_a_gate_that_passed_by_its_tag_alone_does_not_stand_in(
    spec: AdapterSpec, platform: PlatformSettings, caplog: pytest.LogCaptureFixture
) -> None:
    run, _ = _evaluated(spec, platform, "first", seed=1)
    identity = TrainingIdentity(spec.spec_digest, read_prepared(run).digest)
    version, storage = register(spec, run, platform), Storage(platform.s3)
    address = f"{version.uri}/{GATE_REPORT_FILE}"
    report = json.loads(storage.read_bytes(address))
    keyless = replace(platform, gate_key="")
    for document, reason in (
        (sign({**report, "status": "failed"}, platform.gate_key), "its tag says passed, its gate report failed"),
        ({**report, "status": "waived"}, "the signature of the gate report does not match"),
        (sign({**report, "digest": "sha256:other"}, platform.gate_key), "the gate report is about sha256:other"),
        (sign({"status": "passed"}, platform.gate_key), "gate report cannot be read"),
    ):
        storage.write_bytes(address, json.dumps(document).encode())
        assert find_unchanged(spec, identity, platform) is None
        assert reason in caplog.messages[-1]
        assert find_unchanged(spec, identity, keyless) is not None
    storage.write_bytes(address, json.dumps(report).encode())
    assert find_unchanged(spec, identity, platform) is not None


def test_an_older_version_stands_in_for_a_newer_one_that_pods_refuse(
    spec: AdapterSpec, platform: PlatformSettings
) -> None:
    first, _ = _evaluated(spec, platform, "first", seed=1)
    second, _ = _evaluated(spec, platform, "second", seed=2)
    identity = TrainingIdentity(spec.spec_digest, read_prepared(first).digest)
    older, newer = (register(spec, run, platform).version for run in (first, second))
    for state, stands_in in (("ready", newer), ("refused", older)):
        platform.registry().set_version_tag(spec.name, newer, Tag.SERVE_STATE, state)
        found = find_unchanged(spec, identity, platform)
        assert found is not None
        assert found.skipped_version == stands_in


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

"""Registration against a real MLflow and a real S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lorafleet_contract.exceptions import RegistryNotFound, SignatureInvalid
from lorafleet_contract.signature import sign
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import RegistrationError, StorageUnreachable
from lorafleet_pipeline.registry import upload
from lorafleet_pipeline.registry.flavour import FILES
from lorafleet_pipeline.registry.publish import RegisteredVersion, register
from lorafleet_pipeline.registry.upload import VersionUpload
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.storage import Storage
from lorafleet_pipeline.training.result import TrainingResult
from lorafleet_pipeline.training.tracking import experiment_name
from tests.pipeline.registry.fleet import GATE_KEY, settings_of
from tests.pipeline.registry.prepared_run import prepare_run, save_tiny_adapter, spec_of, tiny_model
from tests.services import RunningMLflow


@dataclass(frozen=True)
class Workshop:
    """A registry, and an adapter of a new name to register in it."""

    settings: PlatformSettings
    mlflow: MlflowClient
    spec: AdapterSpec
    adapter: Path

    def run(self, run_key: str = "run-1", status: str = "passed", mlflow_run_id: str | None = None) -> RunFolder:
        work_dir = self.settings.work_dir
        return prepare_run(
            work_dir, self.spec, self.adapter, GATE_KEY, run_key=run_key, status=status, mlflow_run_id=mlflow_run_id
        )

    def logged_models(self) -> list[str]:
        experiment = self.mlflow.get_experiment_by_name(experiment_name(self.spec.name))
        found = [] if experiment is None else self.mlflow.search_logged_models([experiment.experiment_id])
        return [str(model.status) for model in found]

    def versions(self) -> list[int]:
        return [item.version for item in self.settings.registry().search_versions(self.spec.name)]


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "adapter"
    save_tiny_adapter(folder)
    return folder


@pytest.fixture
def workshop(mlflow_server: RunningMLflow, tmp_path: Path, tiny_adapter: Path) -> Workshop:
    settings = settings_of(mlflow_server.s3, tmp_path, mlflow_server.url, ())
    return Workshop(
        settings, MlflowClient(settings.mlflow_url), spec_of(f"adapter-{uuid.uuid4().hex[:8]}"), tiny_adapter
    )


def test_version_is_registered_whole_and_linked_to_its_run(workshop: Workshop) -> None:
    experiment = workshop.mlflow.create_experiment(experiment_name(workshop.spec.name))
    mlflow_run = workshop.mlflow.create_run(experiment).info.run_id
    run = workshop.run(mlflow_run_id=mlflow_run)
    version = register(workshop.spec, run, workshop.settings)
    assert (version.version, version.is_new, version.mlflow_run_id) == (1, True, mlflow_run)
    assert RegisteredVersion.from_json(json.loads(run.registration.read_text())) == version
    storage = Storage(workshop.settings.s3)
    assert storage.list(version.uri) == sorted(f"{version.uri}/{name}" for name in FILES)
    flavour = yaml.safe_load(storage.read_bytes(f"{version.uri}/MLmodel"))["flavors"]["lora"]
    assert (flavour["digest"], flavour["rank"], flavour["adapter"]) == (version.digest, 4, "adapter")
    tags = workshop.settings.registry().get_version(workshop.spec.name, 1).tags
    assert {Tag.LORA_DIGEST, Tag.LORA_RANK, Tag.LORA_BASE_DIGEST, Tag.SPEC_DIGEST, Tag.GATE_STATUS} <= set(tags)
    assert tags[Tag.RUN_KEY] == "run-1"
    assert [output.model_id for output in workshop.mlflow.get_run(mlflow_run).outputs.model_outputs]
    assert workshop.logged_models() == ["READY"]


def test_model_card_says_how_good_it_is_and_how_to_ask(workshop: Workshop) -> None:
    version = register(workshop.spec, workshop.run(), workshop.settings)
    card = Storage(workshop.settings.s3).read_bytes(f"{version.uri}/MODEL_CARD.md").decode()
    for text in (version.digest, "| base | 0.2500 |", "0.5000 (95 % interval 0.4000 to 0.6000)", "{{ question }}"):
        assert text in card
    assert f'"model": "{workshop.spec.name}"' in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "tiny-llama"


def test_registered_adapter_loads_in_plain_peft(workshop: Workshop, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel

    version = register(workshop.spec, workshop.run(), workshop.settings)
    storage = Storage(workshop.settings.s3)
    for address in storage.list(f"{version.uri}/adapter"):
        storage.download(address, tmp_path / "fetched" / address.rpartition("/")[2])
    tokens = torch.arange(1, 11).unsqueeze(0)
    with torch.no_grad():
        base = tiny_model()(tokens).logits
        expected = PeftModel.from_pretrained(tiny_model(), str(workshop.adapter))(tokens).logits
        found = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "fetched"))(tokens).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(found, base)


def test_retry_of_a_run_finds_its_version_and_another_run_makes_the_next(workshop: Workshop) -> None:
    run = workshop.run()
    first = register(workshop.spec, run, workshop.settings)
    run.registration.unlink()
    assert register(workshop.spec, run, workshop.settings) == replace(first, is_new=False)
    assert register(workshop.spec, workshop.run("run-2"), workshop.settings).version == 2
    assert workshop.versions() == [2, 1]
    skipped = workshop.run("run-3")
    TrainingResult.from_json({**json.loads(skipped.training_result.read_text()), "skipped_version": 1}).write(
        skipped.training_result
    )
    assert register(workshop.spec, skipped, workshop.settings) == replace(first, is_new=False)


def test_version_whose_gate_failed_is_registered_and_says_so(workshop: Workshop) -> None:
    version = register(workshop.spec, workshop.run(status="failed"), workshop.settings)
    tags = workshop.settings.registry().get_version(workshop.spec.name, version.version).tags
    assert (version.gate_status, tags[Tag.GATE_REASON]) == ("failed", "lift 0.01 is below 0.05")


def test_parts_that_do_not_belong_together_are_refused(workshop: Workshop) -> None:
    run = workshop.run()
    report = json.loads(run.gate_report.read_text())
    run.gate_report.write_text(json.dumps({**report, "status": "waived"}))
    with pytest.raises(SignatureInvalid):
        register(workshop.spec, run, workshop.settings)
    run.gate_report.write_text(json.dumps(sign({**report, "manifest_digest": "sha256:0"}, GATE_KEY)))
    with pytest.raises(RegistrationError, match="manifest"):
        register(workshop.spec, run, workshop.settings)
    run.gate_report.write_text(json.dumps(report))
    (run.adapter_folder / "adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(RegistrationError, match="evaluate again"):
        register(workshop.spec, run, workshop.settings)
    run.gate_report.unlink()
    with pytest.raises(RegistrationError, match="is missing"):
        register(workshop.spec, run, workshop.settings)
    assert workshop.logged_models() == []
    with pytest.raises(RegistryNotFound):
        workshop.settings.registry().get_model(workshop.spec.name)


def test_failed_upload_leaves_nothing(workshop: Workshop) -> None:
    run = workshop.run()
    away = replace(workshop.settings, s3=replace(workshop.settings.s3, endpoint="http://127.0.0.1:9"))
    with pytest.raises(StorageUnreachable):
        register(workshop.spec, run, away)
    assert workshop.logged_models() == []
    with pytest.raises(RegistryNotFound):
        workshop.settings.registry().get_model(workshop.spec.name)
    assert register(workshop.spec, run, workshop.settings).version == 1


def test_files_that_s3_took_before_it_went_away_are_found_by_the_next_try(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_one = Storage.upload

    def upload_and_lose(storage: Storage, path: Path, address: str) -> None:
        upload_one(storage, path, address)
        del storage.client
        storage._settings = replace(storage._settings, endpoint="http://127.0.0.1:9")

    run = workshop.run()
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "upload", upload_and_lose)
        with pytest.raises(StorageUnreachable):
            register(workshop.spec, run, workshop.settings)
    assert workshop.versions() == []
    assert len(workshop.logged_models()) == 1, "nothing leads to the file that was taken"
    version = register(workshop.spec, run, workshop.settings)
    assert len(Storage(workshop.settings.s3).list(version.uri)) == len(FILES)
    assert workshop.logged_models() == ["READY"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from lorafleet_pipeline.registry import publish, upload
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import load_spec

spec_file, run, when = sys.argv[1:]
create = upload.VersionUpload._create_version

def killed(self, model):
    if when == "after":
        create(self, model)
    os.kill(os.getpid(), signal.SIGKILL)

upload.VersionUpload._create_version = killed
publish.register(load_spec(Path(spec_file)), RunFolder(Path(run)), PlatformSettings.load())
"""


@pytest.mark.faults
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_registration_is_completed_by_the_next_try(
    workshop: Workshop, mlflow_server: RunningMLflow, tmp_path: Path, when: str
) -> None:
    run, spec_file = workshop.run(), tmp_path / "spec.yaml"
    spec_file.write_text(workshop.spec.to_yaml())
    variables = {"LORAFLEET_HOME": str(tmp_path), "LORAFLEET_GATE_KEY": GATE_KEY}
    ended = subprocess.run(
        [sys.executable, "-c", _KILLED, str(spec_file), str(run.path), when],
        env={**os.environ, **mlflow_server.environment(), **variables},
        check=False,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL
    assert workshop.versions() == ([1] if when == "after" else [])
    assert len(workshop.logged_models()) == 1
    version = register(workshop.spec, run, workshop.settings)
    assert (version.version, version.is_new) == (1, when == "before")
    assert workshop.versions() == [1]
    assert workshop.logged_models() == ["READY"]


def test_interrupted_registration_leaves_nothing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: VersionUpload, model: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(VersionUpload, "_create_version", interrupt)
    with pytest.raises(KeyboardInterrupt):
        register(workshop.spec, workshop.run(), workshop.settings)
    assert workshop.logged_models() == []
    with pytest.raises(RegistryNotFound):
        workshop.settings.registry().get_model(workshop.spec.name)


def test_model_that_someone_else_registered_outlives_a_failed_registration(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.mlflow.create_registered_model(workshop.spec.name, description="reserved")
    away = replace(workshop.settings, s3=replace(workshop.settings.s3, endpoint="http://127.0.0.1:9"))
    with pytest.raises(StorageUnreachable):
        register(workshop.spec, workshop.run(), away)
    assert workshop.settings.registry().get_model(workshop.spec.name).aliases == {}


@pytest.mark.parametrize("was_uploaded", [False, True])
def test_what_a_killed_run_left_long_ago_is_removed_by_the_next_run(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, was_uploaded: bool
) -> None:
    experiment = workshop.mlflow.create_experiment(experiment_name(workshop.spec.name))
    name, tags = workshop.spec.name, {Tag.RUN_KEY.value: "killed"}
    orphan = workshop.mlflow.create_logged_model(experiment, name=name, tags=tags)
    Storage(workshop.settings.s3).write_bytes(f"{orphan.artifact_location}/manifest.json", b"{}")
    if was_uploaded:
        workshop.mlflow.finalize_logged_model(orphan.model_id, "READY")
    of_others = workshop.mlflow.create_logged_model(experiment, name=name)
    first = register(workshop.spec, workshop.run("run-1"), workshop.settings)
    assert len(workshop.logged_models()) == 3
    monkeypatch.setattr(upload, "ORPHAN_AGE_S", 0.0)
    register(workshop.spec, workshop.run("run-2"), workshop.settings)
    assert sorted(workshop.logged_models()) == ["PENDING", "READY", "READY"]
    assert workshop.mlflow.get_logged_model(of_others.model_id).status == "PENDING"
    assert Storage(workshop.settings.s3).list(str(orphan.artifact_location)) == []
    assert len(Storage(workshop.settings.s3).list(first.uri)) == len(FILES)


def test_files_of_a_deleted_version_stay_with_its_logged_model(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(workshop.spec, workshop.run("run-1"), workshop.settings)
    workshop.mlflow.delete_model_version(workshop.spec.name, str(first.version))
    monkeypatch.setattr(upload, "ORPHAN_AGE_S", 0.0)
    register(workshop.spec, workshop.run("run-2"), workshop.settings)
    assert len(Storage(workshop.settings.s3).list(first.uri)) == len(FILES)


def test_registration_stands_where_its_logged_model_takes_no_tag_and_a_sweep_spares_it_by_any_name(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("no tags today")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_logged_model_tags", refuse)
        first = register(workshop.spec, workshop.run("run-1"), workshop.settings)
    workshop.mlflow.rename_registered_model(workshop.spec.name, f"{workshop.spec.name}-kept")
    monkeypatch.setattr(upload, "ORPHAN_AGE_S", 0.0)
    for key in ("run-2", "run-3"):
        register(workshop.spec, workshop.run(key), workshop.settings)
        assert len(Storage(workshop.settings.s3).list(first.uri)) == len(FILES)
    assert workshop.logged_models() == ["READY"] * 3

"""Versions made for benchmarks: of the shape of a registered version, each trained to give an answer of its own.

Each has its own digest, so no pod has seen it before; its gate report is signed with the platform's key, so pods take
it like any other version.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from lorafleet_contract.manifest import ADAPTER_FOLDER, GATE_REPORT_FILE, MANIFEST_FILE, AdapterManifest
from lorafleet_contract.registry import ModelVersion
from lorafleet_contract.signature import sign
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.base_models import resolve_base_model
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.storage import Storage
from tests.benchmarks.fixed_answers import AnswerTraining

BUCKET = "s3://mlflow/benchmarks"


@dataclass(frozen=True)
class MadeVersion:
    """A version that no pod has seen."""

    number: int
    digest: str
    answer: str
    """What it says to `fixed_answers.PROMPT`."""


def make_versions(settings: PlatformSettings, name: str, source: int, answers: Iterable[str]) -> list[MadeVersion]:
    """Register a version like `source` for each answer."""
    storage = Storage(settings.s3)
    registry = settings.registry()
    original = registry.get_version(name, source)
    address = registry.get_artifact_address(name, source)
    made = []
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        for file in (
            MANIFEST_FILE,
            GATE_REPORT_FILE,
            *(f"{ADAPTER_FOLDER}/{file}" for file in (CONFIG_FILE, WEIGHTS_FILE)),
        ):
            storage.download(f"{address}/{file}", template / file)
        training = AnswerTraining(resolve_base_model(_base_model(template)), template / ADAPTER_FOLDER)
        for number, answer in enumerate(answers):
            copy = Path(folder) / f"copy-{number}"
            shutil.copytree(template, copy)
            training.write(answer, copy / ADAPTER_FOLDER)
            # Its shape is the template's, and so is its description.
            shutil.copyfile(template / ADAPTER_FOLDER / CONFIG_FILE, copy / ADAPTER_FOLDER / CONFIG_FILE)
            digest = _sign(copy, settings.require_gate_key())
            target = f"{BUCKET}/{name}/{digest.removeprefix('sha256:')}"
            storage.upload_folder(copy, target)
            made.append(MadeVersion(_register(settings, original, target, digest), digest, answer))
    return made


def delete_versions(settings: PlatformSettings, name: str, made: Iterable[MadeVersion]) -> None:
    """Take what `make_versions` made out of registry and storage, so that the next run finds what this one found."""
    from mlflow import MlflowClient

    client = MlflowClient(settings.mlflow_url)
    for version in made:
        client.delete_model_version(name, str(version.number))
    Storage(settings.s3).delete_folder(f"{BUCKET}/{name}")


def _base_model(folder: Path) -> str:
    return AdapterManifest.from_json(_read(folder / MANIFEST_FILE)).base_model


def _sign(folder: Path, gate_key: str) -> str:
    """Bring manifest and gate report in line with the weights, and return their digest."""
    digest = adapter_digest(folder / ADAPTER_FOLDER)
    manifest = AdapterManifest.from_json({**_read(folder / MANIFEST_FILE), "digest": digest})
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_json()))
    report = {**_read(folder / GATE_REPORT_FILE), "digest": digest, "manifest_digest": manifest.manifest_digest}
    (folder / GATE_REPORT_FILE).write_text(json.dumps(sign(report, gate_key)))
    return digest


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def _register(settings: PlatformSettings, original: ModelVersion, address: str, digest: str) -> int:
    from mlflow import MlflowClient

    own = {Tag.SERVE_STATE, Tag.SERVE_ERROR, Tag.SERVE_PROMOTED_AT, Tag.RUN_KEY}
    tags = {key: value for key, value in original.tags.items() if key not in own}
    client = MlflowClient(settings.mlflow_url)
    version = client.create_model_version(original.name, source=address, tags={**tags, Tag.LORA_DIGEST.value: digest})
    return int(version.version)

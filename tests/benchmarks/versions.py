"""Versions made for benchmarks: copies of a registered version whose weights differ, signed anew.

A copy has its own digest, so no pod has seen it before; its gate report is signed with the platform's key,
so pods take it like any other version.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from lorafleet_contract.manifest import ADAPTER_FOLDER, GATE_REPORT_FILE, MANIFEST_FILE, AdapterManifest
from lorafleet_contract.registry import ModelVersion
from lorafleet_contract.signature import sign
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.storage import Storage

BUCKET = "s3://mlflow/benchmarks"


def make_versions(settings: PlatformSettings, name: str, source: int, count: int) -> dict[int, str]:
    """Register `count` versions that differ from `source` by noise, and return version number to digest."""
    storage = Storage(settings.s3)
    registry = settings.registry()
    original = registry.get_version(name, source)
    address = registry.get_artifact_address(name, source)
    made: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        for file in (
            MANIFEST_FILE,
            GATE_REPORT_FILE,
            *(f"{ADAPTER_FOLDER}/{file}" for file in (CONFIG_FILE, WEIGHTS_FILE)),
        ):
            storage.download(f"{address}/{file}", template / file)
        for number in range(count):
            copy = Path(folder) / f"copy-{number}"
            shutil.copytree(template, copy)
            digest = _alter(copy, settings.require_gate_key())
            target = f"{BUCKET}/{name}/{digest.removeprefix('sha256:')}"
            storage.upload_folder(copy, target)
            made[_register(settings, original, target, digest)] = digest
    return made


def delete_versions(settings: PlatformSettings, name: str, made: dict[int, str]) -> None:
    """Take what `make_versions` made out of registry and storage, so that the next run finds what this one found."""
    from mlflow import MlflowClient

    client = MlflowClient(settings.mlflow_url)
    for version in made:
        client.delete_model_version(name, str(version))
    Storage(settings.s3).delete_folder(f"{BUCKET}/{name}")


def _alter(folder: Path, gate_key: str) -> str:
    """Add noise of a thousandth to the weights, and bring manifest and gate report in line with them."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = folder / ADAPTER_FOLDER / WEIGHTS_FILE
    generator = torch.Generator()
    generator.seed()  # Another draw each time: no pod may have seen the digest, in an earlier run either.
    tensors = {
        key: value
        + 1e-3 * value.float().std().to(value.dtype) * torch.randn(value.shape, generator=generator).to(value.dtype)
        for key, value in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
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

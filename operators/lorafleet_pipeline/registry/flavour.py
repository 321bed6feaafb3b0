"""The MLflow flavour `lora`: an adapter beside its manifest, gate report and model card.

Saving and reading the facts needs no torch; `load_model` does. `adapter/` is exactly what PEFT writes, so
that PEFT and other servers load it without MLflow.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafleet_contract.digest import ADAPTER_FILES
from lorafleet_contract.manifest import (
    ADAPTER_FOLDER,
    DATASET_MANIFEST_FILE,
    GATE_REPORT_FILE,
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    AdapterManifest,
)

if TYPE_CHECKING:
    from mlflow.models import Model

FLAVOUR = "lora"
MLMODEL_FILE = "MLmodel"
FILES = (
    MLMODEL_FILE,
    MANIFEST_FILE,
    GATE_REPORT_FILE,
    DATASET_MANIFEST_FILE,
    MODEL_CARD_FILE,
    *(f"{ADAPTER_FOLDER}/{name}" for name in ADAPTER_FILES),
)
"""Every file of a registered version."""


@dataclass(frozen=True)
class AdapterFiles:
    """Where the parts of a version lie before it is saved."""

    adapter: Path
    manifest: Path
    gate_report: Path
    dataset_manifest: Path


def save_model(path: Path, mlflow_model: Model, files: AdapterFiles, model_card: str) -> None:
    """Lay out a version in a folder that does not exist yet, with its `MLmodel`.

    Raises:
        InvalidManifest: the manifest is wrong.
        FileNotFoundError: a part is missing.
    """
    manifest = AdapterManifest.from_json(json.loads(files.manifest.read_text()))
    copies = {
        MANIFEST_FILE: files.manifest,
        GATE_REPORT_FILE: files.gate_report,
        DATASET_MANIFEST_FILE: files.dataset_manifest,
        # By name: checkpoints, optimizer states and pickles beside them stay behind.
        **{f"{ADAPTER_FOLDER}/{name}": files.adapter / name for name in ADAPTER_FILES},
    }
    for name, source in copies.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (path / MODEL_CARD_FILE).write_text(model_card, encoding="utf-8")
    describe(mlflow_model, manifest)
    mlflow_model.save(str(path / MLMODEL_FILE))


def describe(mlflow_model: Model, manifest: AdapterManifest) -> None:
    """Add the flavour's facts and the signature: the template's variables in, a text out."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    inputs = Schema([ColSpec("string", name) for name in manifest.prompt.variables])
    mlflow_model.signature = ModelSignature(inputs=inputs, outputs=Schema([ColSpec("string")]))
    mlflow_model.add_flavor(
        FLAVOUR,
        adapter=ADAPTER_FOLDER,
        base_model=manifest.base_model,
        base_digest=manifest.base_digest,
        method=manifest.method,
        rank=manifest.rank,
        alpha=manifest.alpha,
        target_modules=list(manifest.target_modules),
        digest=manifest.digest,
    )


def load_model(model_uri: str, base_model: str | Path | None = None) -> Any:
    """Load a version as a `peft.PeftModel`; `base_model` stands in where the manifest's cannot be found.

    Needs torch, transformers and peft.
    """
    import mlflow.artifacts
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = Path(mlflow.artifacts.download_artifacts(model_uri))
    manifest = AdapterManifest.from_json(json.loads((folder / MANIFEST_FILE).read_text()))
    base = AutoModelForCausalLM.from_pretrained(str(base_model or manifest.base_model))
    return PeftModel.from_pretrained(base, str(folder / ADAPTER_FOLDER))

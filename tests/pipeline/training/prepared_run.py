"""Run folders with a validated dataset over a tiny random base model, made without the validation step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import adapter_digest, base_digest
from lorafleet_pipeline.datasets.preparation import prepare, read_prepared
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec, parse_spec
from lorafleet_pipeline.training.result import TrainingResult
from tests.serving.tiny_model import make_tiny_adapter

TRAINING: Mapping[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "learning_rate": 0.02,
    "checkpoint_every": 4,
    "max_len": 64,
}


def make_settings(work_dir: Path, mlflow_url: str = "") -> PlatformSettings:
    """Settings without a registry unless one is given."""
    return PlatformSettings(home=work_dir, work_dir=work_dir / "work", mlflow_url=mlflow_url, gate_key="gate-key")


def make_spec(model: Path, folder: Path, **sections: Any) -> AdapterSpec:
    """A spec that echoes a word, over the files that `write_rows` leaves in the folder."""
    document: dict[str, Any] = {
        "name": "echo",
        "base_model": str(model),
        "dataset": {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
        "prompt": "say {{ word }}:",
        "completion": " {{ word }}",
        "method": {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        "training": dict(TRAINING),
        "evaluation": {"metric": "exact_match", "max_new_tokens": 8, "limit": 10},
    }
    for name, section in sections.items():
        known = document.get(name)
        document[name] = {**known, **section} if isinstance(known, dict) else section
    return parse_spec(document, "the test's spec")


def write_rows(folder: Path, train: int = 40) -> None:
    """Rows of words made from syllables; no word stands in two splits."""
    syllables = ["cat", "dog", "sat", "mat", "log", "the", "on"]
    words = [f"{a} {b} {c}" for a in syllables for b in syllables for c in syllables]
    for split, start, count in (("train", 0, train), ("validation", 200, 8), ("test", 220, 30)):
        rows = (json.dumps({"word": word}) for word in words[start : start + count])
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def make_run(spec: AdapterSpec, settings: PlatformSettings, key: str = "run") -> RunFolder:
    """A run folder whose dataset is prepared."""
    run = RunFolder.of(settings.work_dir, spec.name, key)
    run.path.mkdir(parents=True)
    run.spec_file.write_text(spec.to_yaml())
    prepare(spec, run, settings)
    return run


def trained_by_hand(run: RunFolder, spec: AdapterSpec, seed: int = 1) -> TrainingResult:
    """Leave a random adapter and its result, as a training does."""
    base = Path(spec.base_model)
    make_tiny_adapter(base, run.adapter_folder, seed=seed)
    result = TrainingResult(
        adapter_digest=adapter_digest(run.adapter_folder),
        spec_digest=spec.spec_digest,
        dataset_digest=read_prepared(run).digest,
        base_model=spec.base_model,
        base_digest=base_digest(base),
        method=spec.method.type.value,
        trained_on="fp32",
    )
    result.write(run.training_result)
    return result

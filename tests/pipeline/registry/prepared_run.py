"""A run folder as training and evaluation leave it, with a real adapter of a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import adapter_digest
from lorafleet_contract.manifest import AdapterManifest
from lorafleet_contract.signature import sign
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.spec import AdapterSpec, parse_spec
from lorafleet_pipeline.training.result import TrainingResult

TARGETS = ("q_proj", "v_proj")


def spec_of(name: str) -> AdapterSpec:
    document = {
        "name": name,
        "base_model": "tiny-llama",
        "dataset": {"train": "rows.jsonl"},
        "prompt": "Question: {{ question }}\nAnswer:",
        "completion": " {{ answer }}",
        "evaluation": {"metric": "exact_match", "stop": ["\n"]},
        "method": {"target_modules": list(TARGETS)},
    }
    return parse_spec(document, "test")


def tiny_model() -> Any:
    """A llama with random weights, always the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny_adapter(folder: Path) -> None:
    """An adapter with random weights, as PEFT writes it."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS)))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(str(folder))


def prepare_run(
    work_dir: Path,
    spec: AdapterSpec,
    adapter: Path,
    gate_key: str,
    *,
    run_key: str = "run-1",
    status: str = "passed",
    mlflow_run_id: str | None = None,
) -> RunFolder:
    """Write the parts of a run."""
    run = RunFolder.of(work_dir, spec.name, run_key)
    shutil.copytree(adapter, run.adapter_folder)
    (run.adapter_folder / "optimizer.pt").write_bytes(b"stays behind")
    manifest = AdapterManifest(
        name=spec.name,
        digest=adapter_digest(run.adapter_folder),
        base_model=spec.base_model,
        base_digest="sha256:" + "b" * 64,
        method="lora",
        rank=4,
        alpha=8.0,
        target_modules=TARGETS,
        trained_on="fp32",
        dataset_digest="sha256:" + "d" * 64,
        spec_digest=spec.spec_digest,
        prompt=spec.prompt_block(({"question": "1 + 1?"}, {"question": "2 + 2?"})),
        metric="exact_match",
        owner="ann",
    )
    report = {
        "adapter": spec.name,
        "digest": manifest.digest,
        "manifest_digest": manifest.manifest_digest,
        "status": status,
        "reason": "" if status == "passed" else "lift 0.01 is below 0.05",
        "waived_by": None,
        "metric": "exact_match",
        "rows": 200,
        "base": 0.25,
        "candidate": 0.75,
        "champion": None,
        "lift": 0.5,
        "interval": [0.4, 0.6],
        "checks": [],
        "created_at": "2026-01-01T00:00:00Z",
    }
    documents = {
        run.manifest: manifest.to_json(),
        run.gate_report: sign(report, gate_key),
        run.dataset / "manifest.json": {"digest": manifest.dataset_digest},
    }
    for path, document in documents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    TrainingResult(
        adapter_digest=manifest.digest,
        spec_digest=spec.spec_digest,
        dataset_digest=manifest.dataset_digest,
        base_model=spec.base_model,
        base_digest=manifest.base_digest,
        method="lora",
        trained_on="fp32",
        mlflow_run_id=mlflow_run_id,
    ).write(run.training_result)
    return run

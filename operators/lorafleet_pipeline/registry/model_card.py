"""MODEL_CARD.md: what an adapter is, how good it is, and how to call it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from lorafleet_contract.manifest import AdapterManifest
from lorafleet_pipeline.registry.gate_report import GateReport

_EXAMPLE_LEN = 200


def write_model_card(manifest: AdapterManifest, gate: GateReport) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    front = {
        "base_model": manifest.base_model,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", manifest.method, manifest.prompt.category],
    }
    parts = (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {manifest.name}",
        f"A LoRA adapter for `{manifest.base_model}`. Owner: {manifest.owner or 'not named'}.",
        "## Facts\n\n" + _table(("Fact", "Value"), _facts(manifest)),
        "## Evaluation\n\n" + _evaluation(gate),
        f"## Prompt\n\nThe adapter was trained with this template and must be asked with it"
        f"{' (as the user turn of the chat template)' if manifest.prompt.chat else ''}:\n\n"
        + _fenced(manifest.prompt.template, "jinja"),
        "## How to call it\n\n" + _call(manifest),
        "The folder `adapter/` is as PEFT writes it:\n\n" + _fenced(_LOADING, "python"),
    )
    return "\n\n".join(parts) + "\n"


_LOADING = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE_MODEL)
model = PeftModel.from_pretrained(base, "adapter")"""


def _facts(manifest: AdapterManifest) -> list[tuple[str, object]]:
    return [
        ("Digest", f"`{manifest.digest}`"),
        ("Base model", f"`{manifest.base_model}`"),
        ("Base digest", f"`{manifest.base_digest}`"),
        ("Method", manifest.method),
        ("Rank, alpha", f"{manifest.rank}, {manifest.alpha:g}"),
        ("Target modules", ", ".join(manifest.target_modules)),
        ("Form of the base in training", manifest.trained_on),
        ("Dataset digest", f"`{manifest.dataset_digest}`"),
        ("Spec digest", f"`{manifest.spec_digest}`"),
        ("Longest answer", f"{manifest.prompt.max_new_tokens} tokens"),
        ("Stop strings", ", ".join(f"`{json.dumps(text)}`" for text in manifest.prompt.stop) or "none"),
    ]


def _evaluation(gate: GateReport) -> str:
    document = gate.document
    rows: list[tuple[str, object]] = [
        ("base", _number(document.get("base"))),
        ("this adapter", _number(document.get("candidate"))),
    ]
    if document.get("champion") is not None:
        rows.append(("champion at the time", _number(document["champion"])))
    rows.append(("lift over the base", _number(document.get("lift")) + _interval(document)))
    head = f"Held-out rows: {document.get('rows', 'not recorded')}. Gate: **{gate.status.value}**"
    reason = f" ({gate.reason})" if gate.reason else ""
    waiver = f", waived by {gate.waived_by}" if gate.waived_by else ""
    return f"{head}{waiver}{reason}.\n\n" + _table(("", str(document.get("metric", "metric"))), rows)


def _call(manifest: AdapterManifest) -> str:
    example = manifest.prompt.examples[0] if manifest.prompt.examples else dict.fromkeys(manifest.prompt.variables, "")
    variables = {name: _shortened(value) for name, value in example.items()}
    body = json.dumps({"model": manifest.name, "variables": variables}, indent=2, ensure_ascii=False)
    command = f"curl $POD/v1/completions -H 'Content-Type: application/json' -d @- <<'JSON'\n{body}\nJSON"
    return "The pod fills the template from `variables`:\n\n" + _fenced(command, "sh")


def _table(head: tuple[str, str], rows: list[tuple[str, object]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def _fenced(text: str, language: str) -> str:
    # A template may hold fences of its own.
    fence = "`" * max(3, 1 + max((len(run) for run in _runs_of_backticks(text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _runs_of_backticks(text: str) -> list[str]:
    return [run for run in "".join(sign if sign == "`" else " " for sign in text).split() if run]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "not measured"


def _interval(document: Mapping[str, Any]) -> str:
    interval = document.get("interval")
    return f" (95 % interval {_number(interval[0])} to {_number(interval[1])})" if interval else ""


def _shortened(value: object) -> object:
    return value if not isinstance(value, str) or len(value) <= _EXAMPLE_LEN else value[:_EXAMPLE_LEN] + "..."

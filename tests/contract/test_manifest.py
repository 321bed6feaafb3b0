from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_contract.exceptions import InvalidManifest
from lorafleet_contract.manifest import AdapterManifest, read_chat_template
from lorafleet_contract.prompt import PromptBlock

MANIFEST = AdapterManifest(
    name="tickets",
    digest="sha256:1",
    base_model="org/base",
    base_digest="sha256:2",
    method="qlora",
    rank=8,
    alpha=16.0,
    target_modules=("q_proj", "v_proj"),
    trained_on="nf4",
    dataset_digest="sha256:3",
    spec_digest="sha256:4",
    prompt=PromptBlock(template="{{ text }}", variables=("text",), examples=({"text": "a"},)),
    metric="accuracy",
)


def test_manifest_survives_json_with_its_digest() -> None:
    read = AdapterManifest.from_json(json.loads(json.dumps(MANIFEST.to_json())))
    assert read == MANIFEST
    assert read.manifest_digest == MANIFEST.manifest_digest


def test_every_fact_changes_the_digest() -> None:
    changed = [
        replace(MANIFEST, rank=4),
        replace(MANIFEST, digest="sha256:5"),
        replace(MANIFEST, target_modules=("v_proj", "q_proj")),
        replace(MANIFEST, prompt=replace(MANIFEST.prompt, stop=("\n",))),
        replace(MANIFEST, owner="someone"),
        replace(MANIFEST, chat_template="{{ messages }}"),
    ]
    assert len({manifest.manifest_digest for manifest in [MANIFEST, *changed]}) == len(changed) + 1


def test_manifests_without_a_chat_template_keep_their_digest() -> None:
    assert "chat_template" not in MANIFEST.to_json()
    with_template = replace(MANIFEST, chat_template="{{ messages }}")
    assert AdapterManifest.from_json(with_template.to_json()) == with_template


def test_a_chat_template_is_read_where_tokenizers_keep_it(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert read_chat_template(tmp_path) == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert read_chat_template(tmp_path) == "new"


@pytest.mark.parametrize(
    ("template", "said"), [([{"name": "a", "template": "b"}], "several"), ("x" * 70_000, "70000 characters")]
)
def test_a_chat_template_that_cannot_be_served_is_refused(tmp_path: Path, template: object, said: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(InvalidManifest, match=said):
        read_chat_template(tmp_path)
    with pytest.raises(InvalidManifest):
        AdapterManifest.from_json({**MANIFEST.to_json(), "chat_template": template})


def test_missing_unknown_and_mistyped_fields_are_refused() -> None:
    data = MANIFEST.to_json()
    for wrong in (
        {key: value for key, value in data.items() if key != "rank"},
        {key: value for key, value in data.items() if key != "prompt"},
        data | {"surprise": 1},
        data | {"prompt": {"template": "x"}},
        data | {"target_modules": None},
        data | {"rank": "8"},
        data | {"alpha": float("nan")},
        data | {"name": None},
        data | {"target_modules": [1]},
        data | {"prompt": data["prompt"] | {"stop": [1]}},
        data | {"prompt": data["prompt"] | {"examples": ["ab"]}},
        data | {"prompt": []},
    ):
        with pytest.raises(InvalidManifest):
            AdapterManifest.from_json(wrong)


@pytest.mark.parametrize("version", ["2", None, 1])
def test_manifest_of_another_contract_says_what_to_do(version: object) -> None:
    with pytest.raises(InvalidManifest, match="upgrade the older of pipeline and pod"):
        AdapterManifest.from_json(MANIFEST.to_json() | {"contract_version": version})

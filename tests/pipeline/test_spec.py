from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lorafleet_pipeline.exceptions import InvalidSpec
from lorafleet_pipeline.spec import AdapterSpec, Quantization, load_spec, parse_spec
from tests.repository.sources import ROOT

DOCUMENT: dict[str, Any] = {
    "name": "tickets",
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "dataset": {"train": "s3://datasets/tickets/train.jsonl"},
    "prompt": "Ticket: {{ text }}\nTeam:",
    "completion": " {{ team }}\n",
    "evaluation": {"metric": "accuracy"},
}


def _spec(**changes: Any) -> AdapterSpec:
    return parse_spec(DOCUMENT | changes, source="tickets.yaml")


def test_spec_survives_yaml(tmp_path: Path) -> None:
    spec = _spec(method={"r": 4, "target_modules": ["q_proj"]}, tags=["a"], expectations=[{"type": "expect_x", "n": 1}])
    path = tmp_path / "tickets.yaml"
    path.write_text(spec.to_yaml(), encoding="utf-8")
    assert load_spec(path) == spec
    assert load_spec(path).spec_digest == spec.spec_digest


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rat": 1}, r"learning_rat: unknown key: remove it, or correct its spelling"),
        ({"training": {"stesp": 3}}, r"training\.stesp: unknown key"),
        ({"training": {"steps": "many"}}, r"training\.steps: Input should be a valid integer"),
        ({"training": {"steps": 0}}, r"training\.steps: Input should be greater than or equal to 1"),
        ({"dataset": {}}, r"dataset\.train: is missing: add it"),
        ({"dataset": {"train": "x", "max_leakage": 2}}, r"dataset\.max_leakage: Input should be less than or equal"),
        ({"evaluation": {"metric": "bleu"}}, r"evaluation\.metric: Input should be 'rougeL'"),
        ({"name": "no spaces here"}, r"name: adapter name 'no spaces here' is not valid"),
        ({"prompt": "Ticket:"}, r"prompt: the template names no column"),
        ({"prompt": "{{ text"}, r"prompt: template '\{\{ text'"),
        ({"expectations": [{"column": "text"}]}, r"expectations: 0: has no type"),
        ({"expectations": [{"type": "expect_x", "severity": "bad"}]}, r"0\.severity: 'bad' is none of critical"),
        ({"schedule": 5}, r"schedule"),
        ({"training": {"steps": True}}, r"training\.steps: Input should be a valid integer"),
        ({"training": {"steps": "100"}}, r"training\.steps: Input should be a valid integer"),
        ({"training": {"learning_rate": True}}, r"learning_rate: Input should be a number, not true or false"),
        ({"training": {"seed": -1}}, r"training\.seed: Input should be greater than or equal to 0"),
        ({"training": {"seed": 2**70}}, r"training\.seed: Input should be less than"),
        ({"chat": "yes"}, r"chat: Input should be a valid boolean"),
        ({"gate": {"min_lift": float("nan")}}, r"gate\.min_lift: Input should be a finite number"),
        ({"gate": {"min_lift": 2}}, r"gate\.min_lift: Input should be less than or equal to 1"),
        ({"method": {"alpha": float("inf")}}, r"method\.alpha: Input should be a finite number"),
        ({"method": {"dropout": 1.0}}, r"method\.dropout: Input should be less than 1"),
        ({"method": {"target_modules": []}}, r"method\.target_modules: Tuple should have at least 1 item"),
        ({"base_model": ""}, r"base_model: String should have at least 1 character"),
        ({"dataset": {"train": ""}}, r"dataset\.train: String should have at least 1 character"),
        ({"expectations": [{"type": "x", "max_value": float("inf")}]}, r"expectations: 0: holds a number that is not"),
    ],
)
def test_wrong_key_is_named_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSpec, match=says) as caught:
        _spec(**changes)
    assert str(caught.value).startswith("tickets.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"- a\n- b\n", "holds list, a mapping"), (b"a: [", "is no YAML"), (b"\xff\xfe\x00", "is no YAML")],
)
def test_file_that_is_no_spec_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidSpec, match=says) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_as_yaml_reads_them_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "tickets.yaml"
    # YAML 1.1 takes the first for text.
    path.write_text(yaml.safe_dump(DOCUMENT) + "training: {learning_rate: 3e-4, weight_decay: 0}\n")
    training = load_spec(path).training
    assert (training.learning_rate, training.weight_decay) == (3e-4, 0.0)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"cannot be read \(No such file or directory\): check the path"):
        load_spec(tmp_path / "none.yaml")


def test_digest_follows_what_decides_the_weights() -> None:
    digest = _spec().spec_digest
    changes: dict[str, Any]
    for changes in ({"owner": "x"}, {"tags": ["x"]}, {"schedule": "@daily"}, {"promotion": {"policy": "auto"}}):
        assert _spec(**changes).spec_digest == digest, changes
    for changes in (
        {"training": {"steps": 7}},
        {"prompt": "{{ text }}:"},
        {"method": {"r": 4}},
        {"gate": {"min_lift": 0.1}},
    ):
        assert _spec(**changes).spec_digest != digest, changes


@pytest.mark.parametrize(
    ("method", "form"),
    [
        ({"type": "qlora"}, Quantization.NF4),
        ({"type": "lora"}, Quantization.NONE),
        ({"type": "qlora", "quantization": "none"}, Quantization.NONE),
    ],
)
def test_base_form_follows_the_method_unless_said(method: dict[str, Any], form: Quantization) -> None:
    assert _spec(method=method).method.base_form is form


def test_prompt_block_carries_what_serving_needs() -> None:
    spec = _spec(evaluation={"metric": "accuracy", "stop": ["\n"], "max_new_tokens": 9}, category="support")
    block = spec.prompt_block(examples=({"text": "help"},))
    assert block.variables == ("text",)
    assert block.stop == ("\n",)
    assert block.max_new_tokens == 9
    assert block.render({"text": "help"}) == "Ticket: help\nTeam:"


def test_shipped_specs_are_valid_and_named_as_their_files() -> None:
    folder = ROOT / "dags" / "adapters"
    specs = [load_spec(path) for path in sorted(folder.glob("*.yaml"))]
    assert {"docstrings", "e2e_nlg"} <= {spec.name for spec in specs}
    for spec in specs:
        assert (folder / f"{spec.name}.yaml").is_file()
        assert spec.dataset.train.startswith(f"s3://datasets/{spec.name}/")

"""`lorafleet demo` on the whole stack: figures, registry, pod and artifacts tell the same story."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.aliases import Alias
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.storage import Storage
from tests.e2e.conftest import ADAPTER, RunningStack, demo_arguments

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_demo_ends_with_an_adapter_that_beats_its_base(stack: RunningStack) -> None:
    assert stack.demo["adapter"] > stack.demo["base"]
    assert stack.demo["lift"] == pytest.approx(stack.demo["adapter"] - stack.demo["base"])
    low, high = stack.demo["interval"]
    assert low <= stack.demo["lift"] <= high


def test_figures_are_those_that_mlflow_holds(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(stack.settings.mlflow_url)
    run_id = client.get_model_version(ADAPTER, str(stack.demo["version"])).run_id
    assert run_id
    metrics = client.get_run(run_id).data.metrics
    assert metrics["eval/base"] == pytest.approx(stack.demo["base"])
    assert metrics["eval/candidate"] == pytest.approx(stack.demo["adapter"])
    assert metrics["eval/lift"] == pytest.approx(stack.demo["lift"])


def test_the_version_is_champion_and_live(stack: RunningStack) -> None:
    aliases = stack.settings.registry().get_model(ADAPTER).aliases
    assert aliases[Alias.CHAMPION] == stack.demo["version"]
    assert aliases[Alias.LIVE] == stack.demo["version"]


def test_the_pod_answers_by_the_digest_of_the_registry(stack: RunningStack) -> None:
    version = stack.settings.registry().get_version(ADAPTER, stack.demo["version"])
    answer = stack.client.complete(model=ADAPTER, variables={"name": "ValueError"})
    assert answer.digest == version.tags[Tag.LORA_DIGEST] == stack.demo["digest"]
    assert answer.text.strip() == stack.client.complete(model=ADAPTER, variables={"name": "ValueError"}).text.strip()


def test_the_adapter_on_s3_loads_in_plain_peft(stack: RunningStack, tmp_path: Path, base_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    storage = Storage(stack.settings.s3)
    for address in storage.list(f"{stack.demo['uri']}/adapter"):
        storage.download(address, tmp_path / Path(address).name)
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    prompt = "Name: KeyError\nKind:"
    with torch.no_grad():
        tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=1, do_sample=False)
    expected = tokenizer.decode(tokens[0, -1:])
    assert stack.client.complete(model=ADAPTER, prompt=prompt, max_tokens=1).text == expected


def test_a_second_run_skips_the_training(stack: RunningStack) -> None:
    result = stack.lorafleet(*demo_arguments(stack.data))
    assert result.returncode == 0, result.stderr
    again: dict[str, Any] = json.loads(result.stdout)
    assert (again["version"], again["digest"]) == (stack.demo["version"], stack.demo["digest"])
    assert len(stack.settings.registry().search_versions(ADAPTER)) == 1


def test_data_docs_stand_on_s3(stack: RunningStack) -> None:
    docs = Storage(stack.settings.s3).list(f"{stack.settings.docs_url}/{ADAPTER}")
    assert any(address.endswith("index.html") for address in docs)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("demo", "--task", "no_such_task"), "no_such_task"),
        (("demo", "--data", "no_such_folder", "--prompt", "{{ a }}", "--completion", "{{ b }}"), "no_such_folder"),
        (("promote", ADAPTER, "99"), "99"),
        (("promote", "nobody", "1"), "nobody"),
        (("rollback", "nobody"), "nobody"),
    ],
)
def test_bad_input_is_one_line_that_names_it(stack: RunningStack, arguments: tuple[str, ...], named: str) -> None:
    keep = ("--keep",) if arguments[0] == "demo" else ()
    result = stack.lorafleet(*arguments, *keep)
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert named in line
    assert "Traceback" not in result.stderr

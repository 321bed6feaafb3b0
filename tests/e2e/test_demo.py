"""`lorafleet demo` on the whole stack: figures, registry, pod and artifacts tell the same story."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafleet_contract.aliases import Alias
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.storage import Storage
from tests.e2e.conftest import ADAPTER, RunningStack, demo_arguments
from tests.serving.forward import Forward

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_demo_ends_with_an_adapter_that_beats_its_base(stack: RunningStack) -> None:
    assert stack.demo["adapter"] > stack.demo["base"]
    assert stack.demo["lift"] == pytest.approx(stack.demo["adapter"] - stack.demo["base"])
    low, high = stack.demo["interval"]
    assert 0 < low <= stack.demo["lift"] <= high


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


@pytest.fixture(scope="module")
def fetched(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The champion's adapter folder as it stands on S3."""
    folder = tmp_path_factory.mktemp("fetched")
    storage = Storage(stack.settings.s3)
    for address in storage.list(f"{stack.demo['uri']}/adapter"):
        storage.download(address, folder / Path(address).name)
    return folder


def test_the_adapter_on_s3_gives_plain_peft_the_logits_of_the_pods_forward(fetched: Path, base_model: Path) -> None:
    tokenizer, peft = _plain_peft(base_model, fetched, torch.float32)
    prompts = [tokenizer(f"Name: {name}\nKind:").input_ids for name in ("KeyError", "EWOULDBLOCK", "setsockopt")]
    forward = Forward(base_model, {"digest": fetched})
    ends = [len(prompt) for prompt in prompts]
    found = forward.logits([forward.sequence(prompt, "digest") for prompt in prompts], ends)
    bare = forward.logits([forward.sequence(prompt) for prompt in prompts], ends)
    with torch.inference_mode():
        expected = torch.stack([peft(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(bare, expected, atol=1.0)


def test_the_pod_answers_with_the_token_of_plain_peft(stack: RunningStack, fetched: Path, base_model: Path) -> None:
    tokenizer, peft = _plain_peft(base_model, fetched, torch.bfloat16)
    prompt = "Name: KeyError\nKind:"
    with torch.inference_mode():
        tokens = peft.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=1, do_sample=False)
    expected = tokenizer.decode(tokens[0, -1:])
    assert stack.client.complete(model=ADAPTER, prompt=prompt, max_tokens=1).text == expected


def _plain_peft(base: Path, adapter: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return AutoTokenizer.from_pretrained(base), PeftModel.from_pretrained(model, adapter).eval()


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


def test_failed_run_is_told_with_its_cause(stack: RunningStack) -> None:
    data = stack.data.with_name("other_kinds")
    shutil.copytree(stack.data, data)
    result = stack.lorafleet(
        *("demo", "--data", str(data), "--prompt", "Name: {{ nmae }}", "--completion", " {{ kind }}", "--keep")
    )
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: task validate of adapter_other_kinds failed: ")
    assert "column 'nmae'" in line
    assert "it has 'name', 'kind'" in line

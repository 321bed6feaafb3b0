"""LoRAX's own client, unmodified, in an environment of its own, against running pods."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafleet_pipeline.stack.ports import free_port
from tests.serving.conftest import SourceFactory
from tests.serving.lorax_client.environment import lorax_client_python
from tests.serving.pod_process import PodProcess
from tests.serving.registered_adapter import RegistryHand
from tests.serving.tiny_model import make_tiny_model

SESSION = Path(__file__).parent.parent / "lorax_client" / "session.py"
CHECKS = re.findall(r"def check_(\w+)", SESSION.read_text())
ADAPTERS = ("client-a", "client-b")

pytestmark = pytest.mark.timeout(600)  # Making the environment downloads some thirty packages.


@pytest.fixture(scope="module")
def frail_pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodProcess]:
    """A pod that is soon full, and whose model fails at the token `#`."""
    folder = make_tiny_model(tmp_path_factory.mktemp("frail") / "model")
    weights = load_file(folder / "model.safetensors")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    weights["model.embed_tokens.weight"][vocabulary["#"]] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    flags = ("--max-num-seqs", "1", "--max-waiting", "2")
    pod = PodProcess(folder, tmp_path_factory.mktemp("frail-pod"), free_port(), {}, *flags)
    try:
        pod.wait_ready()
        yield pod
    finally:
        pod.stop()


@pytest.fixture(scope="module")
def results(
    pod: PodProcess, frail_pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory
) -> dict[str, str]:
    """What became of each check."""
    for seed, name in enumerate(ADAPTERS, start=31):
        registry.promote(registry.register(name, tiny_adapter(seed)))
    for name in ADAPTERS:
        pod.wait_serving(name, 1)
    settings = {
        "url": pod.url,
        "frail_url": frail_pod.url,
        "frail_log": str(frail_pod.log),
        "adapters": ADAPTERS,
    }
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [str(lorax_client_python()), str(SESSION), json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_the_client_works_as_it_is(check: str, results: dict[str, str]) -> None:
    assert results[check] == "ok", results[check]

"""Front and engine of a pod import nothing that they have no use for: seconds at each start, and memory for good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.serving.pod_process import PodProcess
from tests.serving.random_model import write_model

FAMILIES = ("gemma", "llama", "mistral", "phi", "qwen2", "qwen3")
RUN_AN_ENGINE = """
import sys
from multiprocessing import Pipe
from pathlib import Path
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.messages import EngineReady, Shutdown
from lorafleet_serving.engine.process import engine_main

ours, theirs = Pipe()
ours.send(Shutdown())
engine_main(theirs, EngineConfig(Path(sys.argv[1]), kv_cache_bytes=1 << 20, num_threads=1))
assert isinstance(ours.recv(), EngineReady)
print(*(name for name in ("torch", "torch._dynamo", "torch.distributed.tensor") if name in sys.modules))
"""
READ_CONFIGS = """
import json, sys
from lorafleet_serving.light_transformers import keep_torch_from_transformers
keep_torch_from_transformers()
from transformers import AutoConfig
print(json.dumps([AutoConfig.from_pretrained(folder).to_dict() for folder in sys.argv[1:]]))
"""
KEEP_TOO_LATE = """
import {module}
from lorafleet_serving.light_transformers import keep_torch_from_transformers
keep_torch_from_transformers()
from transformers.utils import is_torch_available
assert is_torch_available()
"""


def _libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def _run(code: str, *arguments: object) -> str:
    return subprocess.check_output([sys.executable, "-c", code, *map(str, arguments)], text=True)


def test_the_front_of_a_pod_has_no_torch(pod: PodProcess) -> None:
    assert "libtorch" in _libraries(pod.child_pids()["engine"])
    assert "libtorch" not in _libraries(pod.pid)


def test_an_engine_has_torch_without_its_compiler(tiny_model: Path) -> None:
    assert _run(RUN_AN_ENGINE, tiny_model).split() == ["torch"]


def test_configs_of_all_families_are_read_as_where_torch_is(tmp_path: Path) -> None:
    folders = [tmp_path / family for family in FAMILIES]
    for folder in folders:
        write_model(folder, folder.name)
    expected = [AutoConfig.from_pretrained(folder).to_dict() for folder in folders]
    assert json.loads(_run(READ_CONFIGS, *folders)) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_where_either_is_in_use_nothing_changes(module: str) -> None:
    _run(KEEP_TOO_LATE.format(module=module))

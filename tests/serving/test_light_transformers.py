"""No process of a pod imports what it has no use for: seconds at each start, and memory for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.pod_process import PodProcess

READS_A_CONFIG = """
import sys
from lorafleet_serving.light_transformers import keep_torch_from_transformers
keep_torch_from_transformers()
from lorafleet_serving.engine.engine import Engine
from transformers import AutoConfig, AutoTokenizer
AutoConfig.from_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
print(*(name for name in ("torch", "torch._dynamo", "torch.distributed.tensor") if name in sys.modules))
"""


def _libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_front_of_a_pod_has_no_torch(pod: PodProcess) -> None:
    assert "libtorch" in _libraries(pod.child_pids()["engine"])
    assert "libtorch" not in _libraries(pod.pid)


def test_configs_and_tokenizers_bring_the_engine_no_compiler(tiny_model: Path) -> None:
    command = [sys.executable, "-c", READS_A_CONFIG, str(tiny_model)]
    assert subprocess.check_output(command, text=True).split() == ["torch"]


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_where_either_is_in_use_nothing_changes(module: str) -> None:
    code = (
        f"import {module}\n"
        "from lorafleet_serving.light_transformers import keep_torch_from_transformers\n"
        "keep_torch_from_transformers()\n"
        "from transformers.utils import is_torch_available\n"
        "assert is_torch_available()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

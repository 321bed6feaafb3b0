"""vLLM as a peer, with stand-ins for an interpreter that has it: it cannot be installed beside the rest."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lorafleet_pipeline.exceptions import InvalidSetting
from tests.benchmarks.vllm_peer import NAMES, DecodingBatch, VllmPeer

BATCH = DecodingBatch(Path("/base"), (5, 6, 7), rank=8, num_seqs=4, num_tokens=3)
VERSION = 'if [ "$1" = -c ]; then echo "INFO: starting"; echo 0.11.0; exit; fi'
STAND_IN = """
from types import SimpleNamespace

__version__ = "0.11.0"
asked = []


class SamplingParams:
    def __init__(self, **options):
        self.max_tokens = options["max_tokens"]


class LLM:
    def __init__(self, **options):
        self.llm_engine = Engine(options)


class Engine:
    def __init__(self, options):
        self.options, self.unfinished = options, {}

    def add_request(self, request_id, prompt, params, lora_request=None):
        asked.append((request_id, prompt, params.max_tokens, lora_request and lora_request.lora_path))
        self.unfinished[request_id] = (params.max_tokens, [])

    def has_unfinished_requests(self):
        if not self.unfinished:
            with open(__file__ + ".asked", "w") as file:
                print(self.options, *asked, sep="\\n", file=file)
        return bool(self.unfinished)

    def step(self):
        outputs = []
        for request_id, (max_tokens, token_ids) in list(self.unfinished.items()):
            token_ids.append(0)
            outputs.append(SimpleNamespace(request_id=request_id, outputs=[SimpleNamespace(token_ids=token_ids)]))
            if len(token_ids) == max_tokens:
                del self.unfinished[request_id]
        return outputs
"""
LORA_REQUEST = """
class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path):
        self.lora_path = lora_path
"""


def interpreter(folder: Path, *lines: str) -> Path:
    """A stand-in for one that has vLLM; `$2` is the job and `$3` the answer."""
    file = folder / "python"
    file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    file.chmod(0o755)
    return file


def decode(peer: VllmPeer, adapters: dict[str, Path] | None = None) -> float:
    return peer.decode(BATCH, adapters or {})


def test_an_environment_without_vllm_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"--vllm-python is .*No module named 'vllm'.*or leave the option out"):
        VllmPeer(Path(sys.executable))


def test_an_interpreter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=r"nowhere.*No such file or directory"):
        VllmPeer(tmp_path / "nowhere")


def test_the_job_is_handed_over_and_the_answer_read_whatever_is_printed(tmp_path: Path) -> None:
    seen, answer = tmp_path / "seen.json", """echo '{"tokens_per_s": 123.5}' > "$3" """
    peer = VllmPeer(interpreter(tmp_path, VERSION, f'cp "$2" {seen}', "echo WARNING: slow", answer, "echo bye >&2"))
    assert peer.version == "0.11.0"
    assert decode(peer, {"a": Path("/adapters/a")}) == 123.5
    assert json.loads(seen.read_text()) == {
        "model": "/base",
        "prompt": [5, 6, 7],
        "adapters": {"a": "/adapters/a"},
        "rank": 8,
        "num_seqs": 4,
        "num_tokens": 3,
    }


def test_it_is_measured_without_adapters_and_with_eight_of_them(tmp_path: Path) -> None:
    answer = """grep -o /adapters/ "$2" | wc -l | sed 's/.*/{"tokens_per_s": &}/' > "$3" """
    adapters = {str(number): Path(f"/adapters/{number}") for number in range(25)}
    contenders = VllmPeer(interpreter(tmp_path, VERSION, answer)).contenders(BATCH, adapters)
    assert {name: run() for name, run in contenders.items()} == dict(zip(NAMES, (0, 8), strict=True))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("echo 'first' >&2; echo 'RuntimeError: no kernel' >&2; exit 3", r"exit status 3: RuntimeError: no kernel"),
        ("exit 0", r"no answer that can be read \(FileNotFoundError"),
        ("""echo '{"tokens": 1}' > "$3" """, r"no answer that can be read \(KeyError"),
        ("""echo 'fast' > "$3" """, r"no answer that can be read \(JSONDecodeError"),
    ],
)
def test_a_measurement_that_fails_says_why(tmp_path: Path, line: str, said: str) -> None:
    peer = VllmPeer(interpreter(tmp_path, VERSION, line))
    with pytest.raises(InvalidSetting, match=said):
        decode(peer)


@pytest.mark.parametrize(
    ("error", "seen"),
    [(subprocess.TimeoutExpired("python", 1), InvalidSetting), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_children_of_a_measurement_that_is_given_up_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, seen: type[BaseException]
) -> None:
    told = tmp_path / "pid"
    peer = VllmPeer(
        interpreter(tmp_path, VERSION, "sleep 600 &", f"echo $! > {told}.part; mv {told}.part {told}", "wait")
    )

    def give_up(*_: object, **__: object) -> None:
        assert eventually(told.exists)
        raise error

    monkeypatch.setattr(subprocess.Popen, "communicate", give_up)
    with pytest.raises(seen):
        decode(peer)
    assert eventually(lambda: not runs(int(told.read_text())))


def eventually(look: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not look() and time.monotonic() < deadline:
        time.sleep(0.01)
    return look()


def runs(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        # Whoever inherits it need not have collected it.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_sequences_take_turns_at_the_adapters_and_the_first_batch_is_not_timed(tmp_path: Path) -> None:
    package = tmp_path / "installed" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "lora" / "request.py").write_text(LORA_REQUEST)
    peer = VllmPeer(interpreter(tmp_path, f'PYTHONPATH={package.parent} exec {sys.executable} "$@"'))
    assert decode(peer, {"a": Path("/a"), "b": Path("/b")}) > 0
    options, *asked = (package / "__init__.py.asked").read_text().splitlines()
    assert "'enable_lora': True, 'max_loras': 2, 'max_lora_rank': 8" in options
    assert [line for line in asked if "'/a'" in line] == asked[::2]
    assert [line for line in asked if "'/b'" in line] == asked[1::2]
    assert len(asked) == 8
    assert decode(peer) > 0
    options, *asked = (package / "__init__.py.asked").read_text().splitlines()
    assert "enable_lora" not in options
    assert all(line.endswith(", {'prompt_token_ids': [5, 6, 7]}, 3, None)") for line in asked)

"""The pass through the model before it serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.grammar_compiler import read_tokenizer
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from lorafleet_serving.exceptions import GenerationFailed
from tests.serving.random_model import write_adapter, write_model

_COMPILED_LATER = """
import json, sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from lorafleet_serving.kernels.weight_format import WeightFormat

def forms():
    modules = [module for name, module in sys.modules.items() if name.startswith("lorafleet_serving.kernels.cpu.")]
    found = {id(item): item for module in modules for item in vars(module).values() if isinstance(item, Dispatcher)}
    return {f"{item.py_func.__module__}.{item.__name__}": len(item.overloads) for item in found.values()}

model, adapter, dtype, weights = sys.argv[1:]
options = {"dtype": DType(dtype), "weights": WeightFormat(weights), "kv_cache_bytes": 8 << 20, "num_threads": 2}
engine = Engine(EngineConfig(Path(model), **options))
engine.rehearse()
before = forms()
engine.load_adapter("adapter", Path(adapter))
prompts = [(1,) * 3, (2,) * 70, (3,) * 30, *[(n,) for n in range(4, 14)]]
for some in (prompts[:1], prompts[1:2], prompts):
    for name in (None, "adapter"):
        sampling = SamplingParams(max_new_tokens=3)
        engine.generate([GenerationRequest(str(n), ids, sampling, name) for n, ids in enumerate(some)])
after = forms()
print(json.dumps([sum(before.values()), [name for name in after if after[name] > before.get(name, 0)]]))
"""


@pytest.mark.parametrize(("dtype", "weights"), [("bfloat16", "model"), ("float32", "int8"), ("bfloat16", "nf4")])
def test_nothing_is_compiled_after_it(tmp_path: Path, dtype: str, weights: str) -> None:
    base = tmp_path / "base"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
    write_model(base, "llama", **sizes)
    adapter = write_adapter(base, tmp_path / "adapter")
    command = [sys.executable, "-c", _COMPILED_LATER, str(base), str(adapter), dtype, weights]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    num_before, later = json.loads(result.stdout)
    assert num_before > 0
    assert later == []


def test_answers_are_the_same_after_it(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    answers = []
    for is_rehearsed in (False, True):
        engine = Engine(EngineConfig(tmp_path, dtype=DType.FP32, kv_cache_bytes=1 << 20, num_threads=1))
        if is_rehearsed:
            engine.rehearse()
        request = GenerationRequest("r", (5, 6, 7), SamplingParams(max_new_tokens=8, ignore_eos=True))
        answers.append(engine.generate([request])["r"])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_the_shortest_sequences_are_enough(tmp_path: Path, longest: int) -> None:
    write_model(tmp_path, "llama")
    config = EngineConfig(
        tmp_path, dtype=DType.FP32, kv_cache_bytes=1 << 20, block_size=2, num_threads=1, max_model_len=longest
    )
    Engine(config).rehearse()


def test_the_smallest_cache_is_enough(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    engine = Engine(EngineConfig(tmp_path, dtype=DType.FP32, kv_cache_bytes=8 << 10, block_size=2, num_threads=1))
    assert engine.max_model_len < 80
    engine.rehearse()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose tokenizer an engine has read."""
    found: list[Path] = []

    def read(folder: Path) -> str:
        found.append(folder)
        return read_tokenizer(folder)

    monkeypatch.setattr("lorafleet_serving.engine.engine.read_tokenizer", read)
    return found


def bound() -> GenerationRequest:
    constraint = Constraint(ConstraintKind.REGEX, "ab")
    return GenerationRequest("bound", (5, 6, 7), SamplingParams(max_new_tokens=8, constraint=constraint))


def small_engine(folder: Path) -> Engine:
    return Engine(EngineConfig(folder, dtype=DType.FP32, kv_cache_bytes=1 << 20, num_threads=1))


def test_the_first_constraint_finds_the_tokenizer_loaded(tiny_model: Path, reads: list[Path]) -> None:
    engine = small_engine(tiny_model)
    assert reads == [], "an engine that is not rehearsed may never need it"
    engine.rehearse()
    assert reads == [tiny_model]
    assert engine.generate([bound()])["bound"]
    assert reads == [tiny_model]


def test_nothing_is_loaded_for_constraints_that_cannot_be_compiled(
    tiny_model: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafleet_serving.engine.grammar_compiler.find_spec", lambda name: None)
    small_engine(tiny_model).rehearse()
    assert reads == []


def test_a_model_without_a_tokenizer_refuses_constraints_alone(tmp_path: Path) -> None:
    write_model(tmp_path, "llama")
    engine = small_engine(tmp_path)
    engine.rehearse()
    with pytest.raises(GenerationFailed, match="cannot be followed"):
        engine.generate([bound()])

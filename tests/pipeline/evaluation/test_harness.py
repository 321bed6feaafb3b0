"""The harness: sampling, stop strings, and answers that are those of the pod's engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lorafleet_pipeline.datasets.dataset import Example
from lorafleet_pipeline.evaluation.harness import Harness, cut_at_stop, sample_examples
from lorafleet_pipeline.exceptions import EvaluationError
from lorafleet_pipeline.spec import EvaluationSection, Metric
from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from tests.serving.tiny_model import make_tiny_adapter

PROMPTS = ("the cat", "the dog sat", "on the log", "the cat")


def _examples(prompts: tuple[str, ...]) -> tuple[Example, ...]:
    return tuple(Example(prompt, " x", row) for row, prompt in enumerate(prompts, start=1))


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Engine:
    return Engine(EngineConfig(model=tiny_base, dtype=DType.FP32, kv_cache_bytes=1 << 22))


def _harness(engine: Engine, *, stop: tuple[str, ...] = (), max_new_tokens: int = 12) -> Harness:
    section = EvaluationSection(metric=Metric.ROUGE_L, max_new_tokens=max_new_tokens, stop=stop)
    return Harness(engine, AutoTokenizer.from_pretrained(engine.tokenizer_folder), section, chat=False)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\ntwo", ["\n"], ("one", True)),
        ("one", ["\n"], ("one", False)),
        ("one END two\n", ["\n", "END"], ("one ", True)),
        ("one", [""], ("one", False)),
    ],
)
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str], expected: tuple[str, bool]) -> None:
    assert cut_at_stop(text, stop) == expected


def test_sample_is_random_but_fixed_by_its_seed() -> None:
    examples = _examples(tuple(map(str, range(100))))
    sample = sample_examples(examples, 10, seed=0)
    assert sample == sample_examples(examples, 10, seed=0)
    assert sample != sample_examples(examples, 10, seed=1)
    assert sample != examples[:10]
    assert [example.row for example in sample] == sorted(example.row for example in sample)
    assert sample_examples(examples, None, seed=0) == examples


def test_answers_are_the_engines_and_come_in_the_order_of_the_rows(engine: Engine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(engine.tokenizer_folder)
    requests = [
        GenerationRequest(str(n), tuple(tokenizer(prompt)["input_ids"]), SamplingParams(max_new_tokens=12))
        for n, prompt in enumerate(PROMPTS)
    ]
    expected = engine.generate(requests)
    progress: list[int] = []
    answers = _harness(engine).answer(_examples(PROMPTS), None, progress.append)
    assert answers == [tokenizer.decode(expected[str(n)]) for n in range(len(PROMPTS))]
    assert progress == [1, 2, 3]
    engine.check_integrity()


def test_answer_ends_at_a_stop_string_and_frees_the_engine(engine: Engine) -> None:
    whole = _harness(engine).answer(_examples(PROMPTS), None, lambda done: None)
    stop = whole[0][3:5]
    cut = _harness(engine, stop=(stop,)).answer(_examples(PROMPTS), None, lambda done: None)
    assert cut == [cut_at_stop(text, [stop])[0] for text in whole]
    assert not engine.has_unfinished()


def test_adapter_answers_differ_from_the_bases(engine: Engine, tiny_base: Path, tmp_path: Path) -> None:
    engine.load_adapter("sha256:a", make_tiny_adapter(tiny_base, tmp_path / "adapter", seed=1))
    harness = _harness(engine)
    base, adapted = (harness.answer(_examples(PROMPTS), digest, lambda done: None) for digest in (None, "sha256:a"))
    assert base != adapted


def test_prompts_without_room_for_an_answer_are_left_out(engine: Engine) -> None:
    long = "cat " * 300
    harness = _harness(engine)
    assert harness.that_fit(_examples(("cat", long))) == _examples(("cat", long))[:1]
    with pytest.raises(EvaluationError, match=r"max_new_tokens 12.*context of"):
        harness.that_fit(_examples((long,)))

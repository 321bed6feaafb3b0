"""The engine on a tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput
from lorafleet_serving.exceptions import (
    AdapterRefusal,
    AdapterTooLarge,
    GenerationFailed,
    InvalidRequest,
    InvalidSetting,
    NoRoom,
)
from tests.serving.random_model import VOCAB_SIZE, peft_answers, write_adapter, write_llama

PROMPTS = [[5, 9, 11, 40], [7] * 30, [60, 3, 8, 21, 34, 55, 89, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    options: dict[str, dict[str, object]] = {
        "all": {"r": 4},
        "few": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
        "rs": {
            "r": 5,
            "use_rslora": True,
            "target_modules": ["k_proj", "o_proj", "up_proj", "down_proj"],
            "rank_pattern": {"down_proj": 3},
            "alpha_pattern": {"layers.1.mlp.up_proj": 3},
        },
    }
    return {
        name: write_adapter(base, root / name, seed, **option)
        for seed, (name, option) in enumerate(options.items(), start=1)
    }


def make_engine(base: Path, **settings: object) -> Engine:
    defaults: dict[str, object] = {
        "dtype": DType.FP32,
        "kv_cache_bytes": 1 << 20,
        "adapter_host_bytes": 1 << 20,
        "adapter_device_bytes": 1 << 20,
        "num_threads": 2,
    }
    return Engine(EngineConfig(base, **(defaults | settings)))  # type: ignore[arg-type]


def make_request(name: str, prompt: list[int], num_tokens: int = 12, adapter: str | None = None) -> GenerationRequest:
    sampling = SamplingParams(max_new_tokens=num_tokens, ignore_eos=True)
    return GenerationRequest(name, tuple(prompt), sampling, adapter)


def run(engine: Engine) -> list[TokenOutput]:
    outputs: list[TokenOutput] = []
    while engine.has_unfinished():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def test_mixed_batch_equals_peft_for_every_adapter(base: Path, adapters: dict[str, Path]) -> None:
    engine = make_engine(base)
    expected: dict[str, list[int]] = {}
    requests: list[GenerationRequest] = []
    for name, folder in [(None, None), *adapters.items()]:
        if name is not None and folder is not None:
            engine.load_adapter(name, folder)
        for index, prompt in enumerate(PROMPTS):
            (answer,) = peft_answers(base, folder, [prompt], 12)
            requests.append(make_request(f"{name}-{index}", PROMPTS[index], adapter=name))
            expected[requests[-1].request_id] = answer
    assert engine.generate(requests) == expected
    assert len({tuple(answer) for answer in expected.values()}) == len(expected), "the adapters change too little"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batched_tokens": 5, "max_num_seqs": 4},  # prompts in chunks
        {"block_size": 1},
        {"block_size": 64},
        {"kv_cache_bytes": 2 * 2 * 2 * 8 * 4 * 52, "block_size": 4, "max_model_len": 42},  # room for one sequence
        {"adapter_device_bytes": 24000},  # room for one adapter
        {"prefix_caching": False},
    ],
    ids=["chunks", "tiny-blocks", "large-blocks", "preemption", "one-slot", "no-prefix-cache"],
)
def test_settings_change_no_token(base: Path, adapters: dict[str, Path], settings: dict[str, object]) -> None:
    requests = [
        make_request(f"{name}-{index}", prompt, adapter=name)
        for name in (None, *adapters)
        for index, prompt in enumerate(PROMPTS)
    ]
    answers = []
    for engine in (make_engine(base), make_engine(base, **settings)):
        for name, folder in adapters.items():
            engine.load_adapter(name, folder)
        answers.append(engine.generate(requests))
        engine.check_integrity()
        assert engine.stats().num_free_blocks == engine.stats().num_kv_blocks
    assert answers[0] == answers[1]


def test_prefix_cache_is_used_and_changes_no_token(base: Path) -> None:
    engine = make_engine(base, block_size=4)
    first = engine.generate([make_request("a", PROMPTS[2])])["a"]
    num_steps = engine.stats().num_steps
    assert engine.generate([make_request("b", PROMPTS[2])])["b"] == first
    assert engine.stats().num_steps - num_steps == 12


def test_end_token_ends_the_answer_and_is_no_part_of_it(base: Path) -> None:
    engine = make_engine(base)
    answer = engine.generate([make_request("a", PROMPTS[0])])["a"]
    stopping = SamplingParams(max_new_tokens=12, stop_token_ids=(answer[4],), ignore_eos=True)
    engine.add_request(GenerationRequest("b", tuple(PROMPTS[0]), stopping))
    outputs = run(engine)
    assert [output.token_id for output in outputs] == [*answer[: answer.index(answer[4])], None]
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_length_ends_with_the_last_token(base: Path) -> None:
    engine = make_engine(base)
    engine.add_request(make_request("a", PROMPTS[0], num_tokens=3))
    outputs = run(engine)
    assert [output.finish_reason for output in outputs] == [None, None, FinishReason.LENGTH]
    assert all(output.token_id is not None for output in outputs)


def test_abort_ends_a_request_and_leaves_the_others(base: Path) -> None:
    engine = make_engine(base)
    alone = engine.generate([make_request("a", PROMPTS[0])])["a"]
    for name, prompt in (("a", PROMPTS[0]), ("b", PROMPTS[1])):
        engine.add_request(make_request(name, prompt))
    engine.step()
    engine.abort("b")
    engine.abort("unknown")
    outputs = run(engine)
    assert [output.finish_reason for output in outputs if output.request_id == "b"] == [FinishReason.ABORTED]
    assert [output.token_id for output in outputs if output.request_id == "a"] == alone[1:]


def test_seed_gives_the_same_answer_in_any_batch(base: Path) -> None:
    engine = make_engine(base)
    sampling = SamplingParams(max_new_tokens=10, temperature=1.0, top_p=0.9, seed=3, ignore_eos=True)
    request = GenerationRequest("a", tuple(PROMPTS[0]), sampling)
    alone = engine.generate([request])["a"]
    others = [make_request(str(index), prompt) for index, prompt in enumerate(PROMPTS)]
    assert engine.generate([*others, request])["a"] == alone


def test_logprobs_come_with_the_tokens(base: Path) -> None:
    engine = make_engine(base)
    sampling = SamplingParams(max_new_tokens=2, num_logprobs=3, ignore_eos=True)
    engine.add_request(GenerationRequest("a", tuple(PROMPTS[0]), sampling))
    for output in run(engine):
        assert output.logprob is not None
        assert output.alternatives[0].token_id == output.token_id
        assert len(output.alternatives) == 3


def test_adapter_with_overflowing_logits_fails_its_request_alone(
    base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(adapters["all"] / "adapter_model.safetensors")
    save_file({name: tensor * 1e25 for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((adapters["all"] / "adapter_config.json").read_text())
    engine = make_engine(base, block_size=4)
    engine.load_adapter("wild", tmp_path)
    alone = engine.generate([make_request("a", PROMPTS[1])])
    engine.add_request(make_request("bad", PROMPTS[2], adapter="wild"))
    engine.add_request(make_request("a", PROMPTS[1]))
    outputs = run(engine)
    failed = [output for output in outputs if output.request_id == "bad"]
    assert [output.finish_reason for output in failed] == [FinishReason.ERROR]
    assert "wild" in str(failed[0].error)
    assert [output.token_id for output in outputs if output.request_id == "a"] == alone["a"]
    # The blocks that it left behind must not reach those who get them next.
    assert engine.generate([make_request(str(index), PROMPTS[1]) for index in range(40)])["39"] == alone["a"]
    with pytest.raises(GenerationFailed, match="bad"):
        engine.generate([make_request("bad", PROMPTS[2], adapter="wild")])
    assert not engine.has_unfinished()


def test_unload_waits_for_the_last_request(base: Path, adapters: dict[str, Path]) -> None:
    engine = make_engine(base)
    engine.load_adapter("all", adapters["all"])
    engine.add_request(make_request("a", PROMPTS[0], adapter="all"))
    engine.step()
    assert not engine.unload_adapter("all")
    with pytest.raises(InvalidRequest, match="not loaded") as caught:
        engine.add_request(make_request("b", PROMPTS[0], adapter="all"))
    assert caught.value.field == "adapter"
    assert len(run(engine)) == 11
    assert engine.stats().host_adapters == ()
    assert engine.stats().device_adapters == ()
    assert engine.unload_adapter("all")


def test_adapter_that_is_loaded_again_stays(base: Path, adapters: dict[str, Path]) -> None:
    engine = make_engine(base)
    size = engine.load_adapter("all", adapters["all"])
    engine.add_request(make_request("a", PROMPTS[0], adapter="all"))
    engine.unload_adapter("all")
    assert engine.load_adapter("all", adapters["all"]) == size
    run(engine)
    assert engine.stats().host_adapters == ("all",)


def test_adapter_beside_which_there_is_no_room_waits_until_another_leaves(
    base: Path, adapters: dict[str, Path]
) -> None:
    engine = make_engine(base, adapter_host_bytes=24000)
    engine.load_adapter("all", adapters["all"])
    with pytest.raises(NoRoom, match="adapter_host_bytes"):
        engine.load_adapter("rs", adapters["rs"])
    assert engine.stats().host_adapters == ("all",)
    engine.unload_adapter("all")
    engine.load_adapter("rs", adapters["rs"])
    assert engine.stats().host_adapters == ("rs",)


@pytest.mark.parametrize("tier", ["adapter_host_bytes", "adapter_device_bytes"])
def test_adapter_larger_than_a_whole_tier_is_refused(base: Path, adapters: dict[str, Path], tier: str) -> None:
    engine = make_engine(base, **{tier: 1000})
    with pytest.raises(AdapterTooLarge, match=tier):
        engine.load_adapter("all", adapters["all"])


def test_refused_adapter_leaves_nothing(base: Path, tmp_path: Path) -> None:
    engine = make_engine(base)
    with pytest.raises(AdapterRefusal):
        engine.load_adapter("empty", tmp_path)
    assert engine.stats().host_adapters == ()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (make_request("a", []), "prompt_token_ids"),
        (make_request("a", [VOCAB_SIZE]), "prompt_token_ids"),
        (make_request("a", [-1]), "prompt_token_ids"),
        (make_request("a", [1] * 250), "max_new_tokens"),
        (make_request("a", [1], adapter="nobody"), "adapter"),
    ],
)
def test_invalid_request_is_refused_by_field(base: Path, request_: GenerationRequest, field: str) -> None:
    engine = make_engine(base)
    with pytest.raises(InvalidRequest) as caught:
        engine.add_request(request_)
    assert caught.value.field == field
    assert not engine.has_unfinished()


def test_request_id_in_use_is_refused(base: Path) -> None:
    engine = make_engine(base)
    engine.add_request(make_request("a", [1]))
    with pytest.raises(InvalidRequest, match="in use"):
        engine.add_request(make_request("a", [1]))


def test_settings_that_do_not_fit_the_model_are_refused(base: Path) -> None:
    with pytest.raises(InvalidSetting, match="takes 256 tokens"):
        make_engine(base, max_model_len=257)
    with pytest.raises(InvalidSetting, match="kv_cache_bytes"):
        make_engine(base, kv_cache_bytes=100)
    with pytest.raises(InvalidSetting, match="KV cache holds"):
        make_engine(base, kv_cache_bytes=2 * 2 * 2 * 8 * 4 * 32, max_model_len=17)


def test_bf16_follows_fp32_closely(base: Path, adapters: dict[str, Path]) -> None:
    logprobs = []
    for dtype in (DType.FP32, DType.BF16):
        engine = make_engine(base, dtype=dtype)
        engine.load_adapter("all", adapters["all"])
        sampling = SamplingParams(max_new_tokens=1, num_logprobs=5, ignore_eos=True)
        engine.add_request(GenerationRequest("a", tuple(PROMPTS[2]), sampling, "all"))
        logprobs.append({entry.token_id: entry.logprob for entry in engine.step()[0].alternatives})
    shared = set(logprobs[0]) & set(logprobs[1])
    assert len(shared) >= 3
    assert all(abs(logprobs[0][token] - logprobs[1][token]) < 0.25 for token in shared)


def test_generate_reports_each_end(base: Path) -> None:
    ended: list[str] = []
    engine = make_engine(base)
    engine.generate([make_request("a", [1], 2), make_request("b", [2], 4)], ended.append)
    assert ended == ["a", "b"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_gives_the_tokens_of_the_cpu(base: Path, adapters: dict[str, Path]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    requests = [make_request(f"{name}", PROMPTS[2], adapter=name) for name in (None, *adapters)]
    answers = []
    for device in ("cpu", "cuda"):
        engine = make_engine(base, device=device)
        for name, folder in adapters.items():
            engine.load_adapter(name, folder)
        answers.append(engine.generate(requests))
    assert answers[0] == answers[1]

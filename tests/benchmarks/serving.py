"""`lorafleet bench serving`: decoding of many adapters, beside its peers and its limits, in one run.

Decoding alone is measured on all sides: the time between the first and the last token of a batch. Peers are
transformers and PEFT on the same weights, prompts and adapters, and vLLM where an environment has it. Two limits stand
beside them: `bound`, the model's linear layers alone through oneDNN, the faster of packed and plain weights; and
`bandwidth`, the time that reading the weights once from memory takes. `ours.int8` is the engine with weights of 8 bits,
whose perplexity on real text stands beside that of the model's own weights where `LORAFLEET_TASK_DATA` is set. Prefills
are of one prompt of 1024 tokens.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from lorafleet_serving.kernels.weight_format import WeightFormat
from tests.benchmarks.adapters import MOST_ADAPTERS, PROMPT, RANK, write_adapters
from tests.benchmarks.limits import Limits
from tests.benchmarks.load import LoadPlan, measure_load
from tests.benchmarks.perplexity import measure_perplexity
from tests.benchmarks.vllm_peer import NAMES as VLLM_NAMES, OPTION as VLLM_OPTION, DecodingBatch, VllmPeer

NUM_SEQS = 32
NUM_TOKENS = 32
RATIOS = {
    "base_to_bound": ("ours.base", "bound.batch"),
    "base_to_transformers": ("ours.base", "transformers.base"),
    "adapters_8_to_bound": ("ours.adapters_8", "bound.batch"),
    "adapters_8_to_base": ("ours.adapters_8", "ours.base"),
    "adapters_25_to_base": ("ours.adapters_25", "ours.base"),
    "adapters_8_to_peft": ("ours.adapters_8", "peft.adapters_8"),
    "base_to_vllm": ("ours.base", "vllm.base"),
    "adapters_8_to_vllm": ("ours.adapters_8", "vllm.adapters_8"),
    "single_adapter_to_bound": ("ours.single_adapter", "bound.single"),
    "int8_single_to_single": ("ours.int8_single", "ours.single_base"),
    "int8_batch_to_base": ("ours.int8_batch", "ours.base"),
    "prefill_adapter_to_base": ("ours.prefill_adapter", "ours.prefill_base"),
    "prefill_base_to_transformers": ("ours.prefill_base", "transformers.prefill"),
}
"""What is told as a ratio: of the two in one round, then the median of the rounds, since other tenants of a machine may
take half of its speed for minutes."""
SLOW = ("transformers.", "peft.", "vllm.")
"""Peers, of which one measurement in a round takes many seconds."""
LONG_PROMPT = tuple(7 * i % 40000 + 100 for i in range(1024))

Report = Callable[[str], None]


def measure(
    model: Path, repeats: int, load: LoadPlan, report: Report, vllm: VllmPeer | None = None
) -> dict[str, float]:
    """Run the benchmark and return its flat map of results.

    Decoding is in tokens per second, medians, with the `.spread` of each, likewise each of `RATIOS`; loads are as
    `measure_load` has them.

    Raises:
        InvalidSetting: vLLM does not decode.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    report(f"{', '.join(VLLM_NAMES)}: " + (f"vllm {vllm.version}" if vllm else f"left out, {VLLM_OPTION} is not given"))
    with tempfile.TemporaryDirectory() as folder:
        report(f"writing {MOST_ADAPTERS} adapters of rank {RANK}")
        adapters = write_adapters(model, Path(folder) / "adapters")
        contenders = _contenders(model, adapters, report)
        if vllm is not None:
            batch = DecodingBatch(model, tuple(_tokenizer(model)(PROMPT).input_ids), RANK, NUM_SEQS, NUM_TOKENS)
            contenders |= vllm.contenders(batch, adapters)
        results = _medians(_rounds(contenders, repeats, report))
        results |= measure_perplexity(model, report)
        contenders.clear()  # Their memory and threads are the pod's from here on.
        if load.seconds > 0:
            results |= measure_load(model, adapters, load, Path(folder), report)
    return results


def _rounds(contenders: Mapping[str, Callable[[], float]], repeats: int, report: Report) -> dict[str, list[float]]:
    runs: dict[str, list[float]] = {}
    peers = {name: run for name, run in contenders.items() if name.startswith(SLOW)}
    quick = {name: run for name, run in contenders.items() if name not in peers}
    for repeat in range(repeats):
        # Side by side in each round, so that whatever else the machine does strikes all alike; and there and back, so
        # that what gets worse or better meanwhile does so too.
        there = {name: run() for name, run in quick.items()}
        once = {name: run() for name, run in peers.items()}
        back = {name: quick[name]() for name in reversed(quick)}
        both = {name: statistics.harmonic_mean((rate, back[name])) for name, rate in there.items()}
        for name, rate in (both | once).items():
            runs.setdefault(name, []).append(rate)
        report(f"round {repeat + 1}: " + ", ".join(f"{name} {values[-1]:.0f}" for name, values in runs.items()))
    return runs


def _medians(runs: dict[str, list[float]]) -> dict[str, float]:
    """Of what was measured and of the ratios, with the spread of each."""
    for name, (above, below) in RATIOS.items():
        if {above, below} <= runs.keys():
            runs[f"ratio.{name}"] = [one / other for one, other in zip(runs[above], runs[below], strict=True)]
    results: dict[str, float] = {}
    for name, values in runs.items():
        results[name] = statistics.median(values)
        results[f"{name}.spread"] = (max(values) - min(values)) / results[name]
    return results


def _contenders(model: Path, adapters: Mapping[str, Path], report: Report) -> dict[str, Callable[[], float]]:
    report("loading the engine, and transformers with PEFT")
    ours = OurEngine(model, adapters)
    int8 = OurEngine(model, adapters, WeightFormat.INT8)
    peers = Peers(model, adapters)
    limits = Limits(model, RANK)
    return {
        "bound.batch": lambda: limits.linears(NUM_SEQS),
        "ours.base": lambda: ours.decode(NUM_SEQS, 0),
        "ours.int8_batch": lambda: int8.decode(NUM_SEQS, 0),
        "ours.adapters_1": lambda: ours.decode(NUM_SEQS, 1),
        "ours.adapters_8": lambda: ours.decode(NUM_SEQS, 8),
        "ours.adapters_25": lambda: ours.decode(NUM_SEQS, 25),
        "transformers.base": lambda: peers.decode(NUM_SEQS, 0),
        "peft.adapters_1": lambda: peers.decode(NUM_SEQS, 1),
        "peft.adapters_8": lambda: peers.decode(NUM_SEQS, 8),
        "bound.single": lambda: limits.linears(1),
        "ours.single_base": lambda: ours.decode(1, 0),
        "ours.single_adapter": lambda: ours.decode(1, 1),
        "ours.int8_single": lambda: int8.decode(1, 0),
        "transformers.prefill": peers.prefill,
        "ours.prefill_base": lambda: ours.prefill(0),
        "ours.prefill_adapter": lambda: ours.prefill(1),
        "bandwidth.batch": lambda: limits.bandwidth(NUM_SEQS, 0),
        "bandwidth.adapters_8": lambda: limits.bandwidth(NUM_SEQS, 8),
        "bandwidth.adapters_25": lambda: limits.bandwidth(NUM_SEQS, 25),
        "bandwidth.single": lambda: limits.bandwidth(1, 0),
    }


class OurEngine:
    """The engine, without the processes around it."""

    def __init__(self, model: Path, adapters: Mapping[str, Path], weights: WeightFormat = WeightFormat.MODEL) -> None:
        threads = torch.get_num_threads()
        # Prefix caching would spare us the prefill that the peers do; only decoding is timed, but let all do the same.
        self._engine = Engine(EngineConfig(model, weights=weights, num_threads=threads, prefix_caching=False))
        self._names = list(adapters)
        for name, folder in adapters.items():
            self._engine.load_adapter(name, folder)
        self._prompt = tuple(_tokenizer(model)(PROMPT).input_ids)
        self.decode(2, 1)  # Compiles.

    def decode(self, num_seqs: int, num_adapters: int) -> float:
        """Tokens per second of a batch whose sequences take turns at the adapters."""
        sampling = SamplingParams(max_new_tokens=NUM_TOKENS, ignore_eos=True)
        for number in range(num_seqs):
            adapter = self._names[number % num_adapters] if num_adapters else None
            self._engine.add_request(GenerationRequest(str(number), self._prompt, sampling, adapter))
        num_first = 0
        while num_first < num_seqs:
            num_first += sum(output.token_id is not None for output in self._engine.step())
        assert num_first == num_seqs, "a sequence decoded while another was still in its prompt"
        start, num_tokens = time.perf_counter(), 0
        while self._engine.has_unfinished():
            num_tokens += sum(output.token_id is not None for output in self._engine.step())
        return num_tokens / (time.perf_counter() - start)

    def prefill(self, num_adapters: int) -> float:
        """Tokens per second of one long prompt, to its first token."""
        adapter = self._names[0] if num_adapters else None
        request = GenerationRequest("prefill", LONG_PROMPT, SamplingParams(max_new_tokens=1), adapter)
        start = time.perf_counter()
        self._engine.generate([request])
        return len(LONG_PROMPT) / (time.perf_counter() - start)


class Peers:
    """transformers' `generate`, and PEFT's with an adapter for each sequence."""

    def __init__(self, model: Path, adapters: Mapping[str, Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self._tokens = _tokenizer(model)(PROMPT, return_tensors="pt").input_ids
        self._plain: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        self._names = list(adapters)[:8]
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self._peft: Any = PeftModel.from_pretrained(base, adapters[self._names[0]], adapter_name=self._names[0])
        for name in self._names[1:]:
            self._peft.load_adapter(adapters[name], adapter_name=name)
        self._peft.eval()

    def decode(self, num_seqs: int, num_adapters: int) -> float:
        """Tokens per second of a batch whose sequences take turns at the adapters."""
        model = self._peft if num_adapters else self._plain
        mixed = {"adapter_names": [self._names[i % num_adapters] for i in range(num_seqs)]} if num_adapters > 1 else {}
        ids = self._tokens.expand(num_seqs, -1)
        clock = _TokenClock()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NUM_TOKENS,
                min_new_tokens=NUM_TOKENS,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[clock],
                **mixed,
            )
        return num_seqs * (NUM_TOKENS - 1) / (clock.times[-1] - clock.times[0])

    def prefill(self) -> float:
        """Tokens per second of one long prompt without an adapter, to the logits of its last token."""
        ids = torch.tensor([LONG_PROMPT])
        start = time.perf_counter()
        with torch.inference_mode():
            self._plain(input_ids=ids, logits_to_keep=1)
        return len(LONG_PROMPT) / (time.perf_counter() - start)


class _TokenClock:
    """Notes when each token of a batch is there; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def _tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)

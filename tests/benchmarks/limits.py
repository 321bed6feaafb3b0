"""What the machine allows: the linear layers alone, and one reading of the weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

_ROUNDS = 15
_STREAMED_BYTES = 1 << 30


class Limits:
    """Limits of decoding with one model, in tokens per second."""

    def __init__(self, model: Path, rank: int) -> None:
        self._weights = _linear_weights(model)
        self._packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 32) for weight in self._weights]
        self._rank = rank

    @torch.inference_mode()
    def linears(self, num_rows: int) -> float:
        """Through oneDNN in bf16, the faster of packed and plain weights."""
        rows = {size: torch.randn(num_rows, size).bfloat16() for size in {w.shape[1] for w in self._weights}}

        def plain() -> None:
            for weight in self._weights:
                F.linear(rows[weight.shape[1]], weight)

        def packed() -> None:
            for weight, ready in zip(self._weights, self._packed, strict=True):
                torch.ops.mkldnn._linear_pointwise(rows[weight.shape[1]], ready, None, "none", [], "")

        return num_rows / min(_median_s(plain), _median_s(packed))

    def bandwidth(self, num_rows: int, num_adapters: int) -> float:
        """Reading the weights of base and adapters once, at the speed at which memory is read now."""
        adapters = sum(self._rank * sum(weight.shape) for weight in self._weights[:-1]) * num_adapters
        num_bytes = 2 * (sum(weight.numel() for weight in self._weights) + adapters)
        return num_rows / (num_bytes / _read_bytes_per_s())


def _linear_weights(model: Path) -> list[Tensor]:
    """Weights of the linear layers, merged as every engine merges them, the output head last."""
    with safe_open(model / "model.safetensors", framework="pt") as file:
        names = file.keys()
        weights = {name: file.get_tensor(name).bfloat16() for name in names if name.endswith("proj.weight")}
        head = file.get_tensor("lm_head.weight" if "lm_head.weight" in names else "model.embed_tokens.weight")
    found: list[Tensor] = []
    layers = sorted({name.rpartition(".self_attn.")[0] for name in weights if ".self_attn.q_proj" in name})
    for layer in layers:
        for merged in (("self_attn", "q", "k", "v"), ("self_attn", "o"), ("mlp", "gate", "up"), ("mlp", "down")):
            part, *modules = merged
            found.append(torch.cat([weights[f"{layer}.{part}.{module}_proj.weight"] for module in modules]))
    return [*found, head.bfloat16()]


def _read_bytes_per_s() -> float:
    data = torch.ones(_STREAMED_BYTES // 4, dtype=torch.float32)
    return data.nbytes / _median_s(data.sum, rounds=3)


def _median_s(run: Callable[[], object], rounds: int = _ROUNDS) -> float:
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)

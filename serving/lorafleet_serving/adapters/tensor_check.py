"""Names and shapes of an adapter's tensors, held against its config and the base model before any is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from lorafleet_serving.adapters.lora_config import LoraConfig
from lorafleet_serving.adapters.tensor_header import TensorHeader
from lorafleet_serving.exceptions import AdapterRefusal
from lorafleet_serving.layers.adapter_base import AdapterBase

_KEY_PREFIX = "base_model.model."
_MAGNITUDE_BYTES = 8
"""Per output of a DoRA module: gain and offset in fp32."""


def lora_key(module: str, part: str) -> str:
    """Name of A or B of a linear module."""
    return f"{_KEY_PREFIX}{module}.lora_{part}.weight"


def embedding_key(module: str, part: str) -> str:
    """Name of A or B of an embedding."""
    return f"{_KEY_PREFIX}{module}.lora_embedding_{part}"


def magnitude_key(module: str) -> str:
    """Name of a DoRA module's magnitudes."""
    return f"{_KEY_PREFIX}{module}.lora_magnitude_vector"


def table_key(module: str) -> str:
    """Name under which PEFT saves the base model's own table beside an adapter on it."""
    return f"{_KEY_PREFIX}{module}.base_layer.weight"


@dataclass
class CheckedTensors:
    """What an adapter's file holds."""

    ranks: dict[str, int] = field(default_factory=dict)
    """Ranks by linear module."""
    embedding_rank: int | None = None
    tables: set[str] = field(default_factory=set)
    """Modules whose table of the base model came along."""
    num_bytes: int = 0
    """Memory that the adapter's tensors take in the format of the base."""


def check_tensors(
    config: LoraConfig, headers: Mapping[str, TensorHeader], base: AdapterBase, dtype: torch.dtype
) -> CheckedTensors:
    """Check names and shapes of all tensors.

    Raises:
        AdapterRefusal: one is missing, misshapen or unknown, or the adapter changes nothing.
    """
    check = _Check(config, headers, dtype)
    for linear in base.linears:
        site = linear.site
        for position, out_features in enumerate(site.out_features):
            check.linear(site.module_name(position), out_features, site.in_features)
    check.embedding(base.embedding.module, *base.embedding.weight.shape)
    return check.finish()


class _Check:
    def __init__(self, config: LoraConfig, headers: Mapping[str, TensorHeader], dtype: torch.dtype) -> None:
        self._config = config
        self._headers = headers
        self._dtype = dtype
        self._unexpected = set(headers)
        self._checked = CheckedTensors()

    def linear(self, module: str, out_features: int, in_features: int) -> None:
        rank = self._config.rank(module)
        shapes: dict[str, tuple[int, ...]] = {
            lora_key(module, "A"): (rank, in_features),
            lora_key(module, "B"): (out_features, rank),
        }
        if self._config.dora:
            shapes[magnitude_key(module)] = (out_features,)
        if self._take(module, shapes):
            self._checked.ranks[module] = rank
            self._count(rank * (in_features + out_features), out_features if self._config.dora else 0)
            self._pass_over_table(module, (out_features, in_features))

    def embedding(self, module: str, vocab_size: int, hidden_size: int) -> None:
        rank = self._config.rank(module)
        shapes = {embedding_key(module, "A"): (rank, vocab_size), embedding_key(module, "B"): (hidden_size, rank)}
        if self._take(module, shapes):
            if self._config.dora:
                raise AdapterRefusal(f"adapter config: use_dora at the embedding {module} is not served: leave it out")
            self._checked.embedding_rank = rank
            self._count(rank * (vocab_size + hidden_size), 0)
            self._pass_over_table(module, (vocab_size, hidden_size))

    def finish(self) -> CheckedTensors:
        if self._unexpected:
            raise AdapterRefusal(
                f"adapter weights hold {len(self._unexpected)} tensors that its config or the base model does not "
                f"know, as {min(self._unexpected)}"
            )
        if not self._checked.num_bytes:
            raise AdapterRefusal("adapter weights change no module of the base model")
        return self._checked

    def _take(self, module: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the module has an adapter, which then is complete."""
        found = shapes.keys() & self._unexpected
        if not found and self._config.targets(module) is not True:
            return False
        if missing := sorted(shapes.keys() - found):
            raise AdapterRefusal(f"adapter weights lack {missing[0]}, which the adapter's config asks for")
        if self._config.targets(module) is False:
            return False
        self._unexpected -= found
        for name, shape in shapes.items():
            self._check_shape(name, shape)
        return True

    def _pass_over_table(self, module: str, shape: tuple[int, int]) -> None:
        name = table_key(module)
        if name in self._unexpected:
            self._check_shape(name, shape)
            self._unexpected.discard(name)
            self._checked.tables.add(module)

    def _check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        if self._headers[name].shape != expected:
            raise AdapterRefusal(
                f"adapter tensor {name} has shape {list(self._headers[name].shape)}, "
                f"base model and config ask for {list(expected)}"
            )

    def _count(self, num_elements: int, num_magnitudes: int) -> None:
        self._checked.num_bytes += num_elements * self._dtype.itemsize + num_magnitudes * _MAGNITUDE_BYTES

"""What of a base model adapters attach to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lorafleet_serving.kernels.operators import Kernels
from lorafleet_serving.layers.embedding import Embedding
from lorafleet_serving.layers.linear import LoraLinear


class AdapterBase(Protocol):
    """The linear layers and the embedding of a model."""

    @property
    def kernels(self) -> Kernels:
        """The operators that compute it."""
        ...

    @property
    def linears(self) -> Sequence[LoraLinear]:
        """Linear layers by the index of their sites."""
        ...

    @property
    def embedding(self) -> Embedding:
        """Token embedding."""
        ...

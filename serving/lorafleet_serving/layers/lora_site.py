"""Places in a model to which adapters attach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraSite:
    """One linear layer of ours: one or more modules of the checkpoint, merged along their outputs."""

    index: int
    """Number of the site in its model, dense from 0."""
    prefix: str
    """Name of the parent module in the checkpoint, as `model.layers.3.self_attn`; empty at the top."""
    modules: tuple[str, ...]
    """Names of the merged modules below the parent, as `q_proj`."""
    in_features: int
    out_features: tuple[int, ...]
    """Outputs of each merged module."""

    def module_name(self, position: int) -> str:
        """Full name of a merged module in the checkpoint."""
        name = self.modules[position]
        return f"{self.prefix}.{name}" if self.prefix else name

"""An adapter as PEFT writes it, read into the tensors that the engine multiplies with.

Whatever is not served exactly is refused by name: an adapter that would answer differently from
PEFT must not answer at all. Knows nothing of registries and tiers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE
from lorafleet_serving.adapters.dora import Magnitudes, Project, rescaled
from lorafleet_serving.adapters.lora_config import LoraConfig
from lorafleet_serving.adapters.tensor_check import (
    CheckedTensors,
    check_tensors,
    embedding_key,
    lora_key,
    magnitude_key,
    table_key,
)
from lorafleet_serving.adapters.tensor_header import read_header
from lorafleet_serving.exceptions import AdapterRefusal, AdapterTooLarge, NoRoom
from lorafleet_serving.kernels.lora_table import AddressTable, address_table
from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights, PackedLora
from lorafleet_serving.layers.adapter_base import AdapterBase
from lorafleet_serving.layers.embedding import EmbeddingLora
from lorafleet_serving.layers.linear import LoraLinear, row_norms


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter's tensors by site index; None where the adapter leaves the site alone."""

    digest: str
    sites: tuple[PackedLora | None, ...]
    embedding: EmbeddingLora | None = None

    @cached_property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        embedding = 0 if self.embedding is None else self.embedding.num_bytes
        return embedding + sum(weights.num_bytes for weights in self.sites if weights is not None)

    @cached_property
    def addresses(self) -> AddressTable:
        """Where the tensors lie."""
        return address_table(self.sites)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        devices = (weights.device for weights in self.sites if weights is not None)
        return next(devices) if self.embedding is None else self.embedding.a.device

    def to(self, device: torch.device) -> AdapterWeights:
        """The same adapter on a device: itself where it lies there already."""
        if self.device == device:
            return self
        return AdapterWeights(
            self.digest,
            tuple(None if weights is None else weights.to(device) for weights in self.sites),
            None if self.embedding is None else self.embedding.to(device),
        )


@dataclass(frozen=True)
class StagedAdapter:
    """An adapter folder whose names, shapes and size are checked; its tensors have yet to be read."""

    digest: str
    file: Path
    config: LoraConfig
    checked: CheckedTensors
    dtype: torch.dtype
    """Number format of the base model."""

    def finish(self, base: AdapterBase, project: Project = LoraLinear.project) -> AdapterWeights:
        """Read the tensors. Site by site: no more than one lies in memory beside what stays.

        Args:
            base: the base model.
            project: multiplies with it, for DoRA; once for each site.

        Raises:
            AdapterRefusal: the tensors are damaged or hostile, or with the base model's weights they give factors that
                are not finite.
        """
        try:
            with safe_open(self.file, framework="pt", device="cpu") as file:
                reader = _Reader(file.get_tensor, self.config, self.checked, self.dtype, project)
                reader.check_tables(base)
                sites = base.kernels.pack_lora(map(reader.site, base.linears), _num_elements(self.checked, base))
                return AdapterWeights(self.digest, tuple(sites), reader.embedding(base))
        except (OSError, SafetensorError) as error:
            raise AdapterRefusal(f"adapter weights {self.file} cannot be read: {error}") from error


def stage_adapter(
    digest: str,
    folder: Path,
    base: AdapterBase,
    dtype: torch.dtype,
    max_bytes: int,
    free_bytes: int | None = None,
) -> StagedAdapter:
    """Check an adapter folder before any tensor is read.

    Args:
        digest: identity under which the adapter is served.
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        base: the base model.
        dtype: number format of the base model.
        max_bytes: most memory that the tensors of one adapter may take.
        free_bytes: what is left of it beside other adapters; all of it unless set.

    Raises:
        AdapterRefusal: the adapter is damaged, hostile, made for another model, too large, or asks
            for something that is not served.
        NoRoom: it would fit if others left.
    """
    _require_weights(folder)
    config = LoraConfig.read(folder / CONFIG_FILE)
    modules = [linear.site.module_name(i) for linear in base.linears for i in range(len(linear.site.modules))]
    config.check_targets([*modules, base.embedding.module])
    checked = check_tensors(config, read_header(folder / WEIGHTS_FILE), base, dtype)
    _check_room(digest, checked.num_bytes, max_bytes, free_bytes)
    return StagedAdapter(digest, folder / WEIGHTS_FILE, config, checked, dtype)


def _require_weights(folder: Path) -> None:
    if not (folder / WEIGHTS_FILE).is_file():
        other = "; its .bin weights are a pickle, which is never read: save it as safetensors"
        raise AdapterRefusal(f"adapter {folder} has no {WEIGHTS_FILE}" + (other if any(folder.glob("*.bin")) else ""))


def _check_room(digest: str, num_bytes: int, max_bytes: int, free_bytes: int | None) -> None:
    if num_bytes > max_bytes:
        raise AdapterTooLarge(
            f"adapter {digest} takes {num_bytes} bytes, one adapter may take {max_bytes}: "
            "raise the engine's adapter_host_bytes and adapter_device_bytes"
        )
    if free_bytes is not None and num_bytes > free_bytes:
        raise NoRoom(
            f"adapter {digest} takes {num_bytes} bytes and {free_bytes} are left beside the others: "
            "try again when others have left, or raise the engine's adapter_host_bytes"
        )


def _num_elements(checked: CheckedTensors, base: AdapterBase) -> int:
    """Of A and B of all linear modules together."""
    return sum(
        checked.ranks.get(linear.site.module_name(position), 0) * (linear.site.in_features + out_features)
        for linear in base.linears
        for position, out_features in enumerate(linear.site.out_features)
    )


class _Reader:
    """Puts an adapter together from tensors whose names and shapes are checked."""

    def __init__(
        self,
        take: Callable[[str], Tensor],
        config: LoraConfig,
        checked: CheckedTensors,
        dtype: torch.dtype,
        project: Project,
    ) -> None:
        self._take = take
        self._config = config
        self._checked = checked
        self._dtype = dtype
        self._project = project

    def check_tables(self, base: AdapterBase) -> None:
        """Check that tables of the base model that came along are the base's own."""
        own = {base.embedding.module: row_norms(base.embedding.weight)} if self._checked.tables else {}
        own |= {
            linear.site.module_name(0): linear.row_norms for linear in base.linears if len(linear.site.modules) == 1
        }
        for module in self._checked.tables:
            if module not in own:
                raise AdapterRefusal(
                    f"adapter tensor {table_key(module)} is a weight of the base model: save the adapter without it"
                )
            # Training moves the length of nearly every row that it moves.
            norms = row_norms(self._take(table_key(module)).to(self._dtype)).to(own[module].device)
            if not torch.allclose(norms, own[module], rtol=1e-5, atol=0.0):
                raise AdapterRefusal(
                    f"adapter tensor {table_key(module)} is not the base model's own table: trained tables are not "
                    "served, train an adapter on the module instead"
                )

    def site(self, linear: LoraLinear) -> LoraWeights | None:
        """Weights at a site, A stacked over its modules."""
        stacked: list[Tensor] = []
        slices: list[LoraSlice] = []
        out_start = rank_start = 0
        for position, out_features in enumerate(linear.site.out_features):
            module = linear.site.module_name(position)
            if rank := self._checked.ranks.get(module):
                out_end = out_start + out_features
                stacked.append(self._convert(lora_key(module, "A"), 1.0))
                # B lies rank by rank, as the operators read it.
                b = self._convert(lora_key(module, "B"), self._config.scaling(module)).t().contiguous().t()
                slices.append(LoraSlice(out_start, out_end, rank_start, rank_start + rank, b))
                rank_start += rank
            out_start += out_features
        if not stacked:
            return None
        site = LoraWeights(torch.cat(stacked), tuple(slices))
        return rescaled(site, self._magnitudes(linear), linear, self._project) if self._config.dora else site

    def embedding(self, base: AdapterBase) -> EmbeddingLora | None:
        """Weights at the token embedding."""
        if self._checked.embedding_rank is None:
            return None
        module = base.embedding.module
        a = self._convert(embedding_key(module, "A"), 1.0)
        b = self._convert(embedding_key(module, "B"), self._config.scaling(module))
        return EmbeddingLora(a.t().contiguous(), b.t().contiguous())

    def _magnitudes(self, linear: LoraLinear) -> list[Magnitudes]:
        """What DoRA learned, by slice of the site."""
        modules = map(linear.site.module_name, range(len(linear.site.modules)))
        names = [magnitude_key(module) for module in modules if self._checked.ranks.get(module)]
        return [Magnitudes(name, self._take(name)) for name in names]

    def _convert(self, name: str, factor: float) -> Tensor:
        # Scaled before it is rounded, so that only one rounding happens.
        converted = (self._take(name).float() * factor).to(self._dtype)
        if not bool(torch.isfinite(converted).all()):
            raise AdapterRefusal(f"adapter tensor {name} holds values that are not finite")
        return converted

"""An adapter as PEFT writes it, read into the tensors that the engine multiplies with.

Whatever is not served exactly is refused by name: an adapter that would answer differently from
PEFT must not answer at all. Knows nothing of registries and tiers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE
from lorafleet_serving.adapters.dora import rescale
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
from lorafleet_serving.kernels.lora_table import Ints, address_table
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
    def addresses(self) -> Ints:
        """Where the tensors lie, by site."""
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


class _Magnitudes(NamedTuple):
    """What DoRA learned of a module, before it is known what that does to the base model's rows."""

    name: str
    values: Tensor
    """[out_features]"""


@dataclass(frozen=True)
class StagedAdapter:
    """An adapter as it was read; what is left is done with the base model's kernels, which one thread may enter."""

    weights: AdapterWeights
    magnitudes: Mapping[int, Sequence[_Magnitudes]]
    """Of DoRA, by site; one for each slice."""

    def finish(self, base: AdapterBase) -> AdapterWeights:
        """The adapter, ready to be multiplied with.

        Raises:
            AdapterRefusal: a magnitude is not finite, or a row has no length.
        """
        if not self.magnitudes:
            return self.weights
        sites = [None if site is None else site.dense() for site in self.weights.sites]
        for index, magnitudes in self.magnitudes.items():
            site = sites[index]
            assert site is not None, "magnitudes belong to a site that the adapter leaves alone"
            slices = (
                part._replace(
                    rescale=rescale(*learned, site.a[part.rank_start : part.rank_end], part, base.linears[index])
                )
                for part, learned in zip(site.slices, magnitudes, strict=True)
            )
            sites[index] = LoraWeights(site.a, tuple(slices))
        return AdapterWeights(self.weights.digest, tuple(base.kernels.pack_lora(sites)), self.weights.embedding)


def stage_adapter(
    digest: str,
    folder: Path,
    base: AdapterBase,
    dtype: torch.dtype,
    max_bytes: int,
    free_bytes: int | None = None,
) -> StagedAdapter:
    """Read an adapter folder, as far as that can be done beside the steps.

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
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt", device="cpu") as file:
            reader = _Reader(file.get_tensor, config, checked, dtype)
            reader.check_tables(base)
            sites, magnitudes = [reader.site(linear) for linear in base.linears], reader.magnitudes(base)
            # DoRA's own factors are made from the weights as they come: `finish` packs those.
            packed = tuple(sites if magnitudes else base.kernels.pack_lora(sites))
            return StagedAdapter(AdapterWeights(digest, packed, reader.embedding(base)), magnitudes)
    except (OSError, SafetensorError) as error:
        raise AdapterRefusal(f"adapter weights {folder / WEIGHTS_FILE} cannot be read: {error}") from error


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


class _Reader:
    """Puts an adapter together from tensors whose names and shapes are checked."""

    def __init__(
        self, take: Callable[[str], Tensor], config: LoraConfig, checked: CheckedTensors, dtype: torch.dtype
    ) -> None:
        self._take = take
        self._config = config
        self._checked = checked
        self._dtype = dtype

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
        return LoraWeights(torch.cat(stacked), tuple(slices)) if stacked else None

    def magnitudes(self, base: AdapterBase) -> dict[int, list[_Magnitudes]]:
        """What DoRA learned; empty for another method."""
        if not self._config.dora:
            return {}
        found = {}
        for index, linear in enumerate(base.linears):
            modules = map(linear.site.module_name, range(len(linear.site.modules)))
            names = [magnitude_key(module) for module in modules if self._checked.ranks.get(module)]
            if names:
                found[index] = [_Magnitudes(name, self._take(name)) for name in names]
        return found

    def embedding(self, base: AdapterBase) -> EmbeddingLora | None:
        """Weights at the token embedding."""
        if self._checked.embedding_rank is None:
            return None
        module = base.embedding.module
        a = self._convert(embedding_key(module, "A"), 1.0)
        b = self._convert(embedding_key(module, "B"), self._config.scaling(module))
        return EmbeddingLora(a.t().contiguous(), b.t().contiguous())

    def _convert(self, name: str, factor: float) -> Tensor:
        # Scaled before it is rounded, so that only one rounding happens.
        converted = (self._take(name).float() * factor).to(self._dtype)
        if not bool(torch.isfinite(converted).all()):
            raise AdapterRefusal(f"adapter tensor {name} holds values that are not finite")
        return converted

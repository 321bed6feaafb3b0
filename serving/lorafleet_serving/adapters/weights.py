"""An adapter as PEFT writes it, read into the tensors that the engine multiplies with.

Whatever is not served exactly is refused by name: an adapter that would answer differently from
PEFT must not answer at all. Knows nothing of registries and tiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE
from lorafleet_serving.adapters.lora_config import LoraConfig
from lorafleet_serving.adapters.tensor_header import TensorHeader, read_header
from lorafleet_serving.exceptions import AdapterRefusal, AdapterTooLarge, NoRoom
from lorafleet_serving.kernels.lora_table import Ints, address_table
from lorafleet_serving.kernels.segments import LoraSlice, LoraWeights
from lorafleet_serving.layers.lora_site import LoraSite

_KEY_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter's tensors by site index; None where the adapter leaves the site alone."""

    digest: str
    sites: tuple[LoraWeights | None, ...]

    @cached_property
    def num_bytes(self) -> int:
        """Memory of the tensors."""
        return sum(weights.num_bytes for weights in self.sites if weights is not None)

    @cached_property
    def addresses(self) -> Ints:
        """Where the tensors lie, by site."""
        return address_table(self.sites)

    def to(self, device: torch.device) -> AdapterWeights:
        """The same adapter on a device; shares its tensors where they already are there."""
        return AdapterWeights(
            self.digest, tuple(None if weights is None else _move(weights, device) for weights in self.sites)
        )


def read_adapter(
    digest: str,
    folder: Path,
    sites: Sequence[LoraSite],
    dtype: torch.dtype,
    max_bytes: int,
    free_bytes: int | None = None,
) -> AdapterWeights:
    """Read an adapter folder.

    Args:
        digest: identity under which the adapter is served.
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        sites: sites of the base model.
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
    config.check_targets([site.module_name(i) for site in sites for i in range(len(site.modules))])
    headers = read_header(folder / WEIGHTS_FILE)
    ranks = _check_tensors(config, headers, sites)
    num_bytes = sum(header.num_elements for header in headers.values()) * dtype.itemsize
    _check_room(digest, num_bytes, max_bytes, free_bytes)
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AdapterRefusal(f"adapter weights {folder / WEIGHTS_FILE} cannot be read: {error}") from error
    return AdapterWeights(digest, tuple(_site_weights(site, config, ranks, tensors, dtype) for site in sites))


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
            "take aliases from adapters that are not needed, or raise the engine's adapter_host_bytes"
        )


def _key(module: str, part: str) -> str:
    return f"{_KEY_PREFIX}{module}.lora_{part}.weight"


def _check_tensors(config: LoraConfig, headers: dict[str, TensorHeader], sites: Sequence[LoraSite]) -> dict[str, int]:
    """Check names and shapes of all tensors against config and model; returns the ranks by module."""
    ranks: dict[str, int] = {}
    unexpected = set(headers)
    for site in sites:
        for position, out_features in enumerate(site.out_features):
            module = site.module_name(position)
            key_a, key_b = _key(module, "A"), _key(module, "B")
            found = {key_a, key_b} & unexpected
            if not found and config.targets(module) is not True:
                continue
            if len(found) < 2:
                missing = sorted({key_a, key_b} - found)
                raise AdapterRefusal(f"adapter weights lack {missing[0]}, which the adapter's config asks for")
            if config.targets(module) is False:
                continue
            unexpected -= found
            rank = config.rank(module)
            _check_shape(key_a, headers[key_a], (rank, site.in_features))
            _check_shape(key_b, headers[key_b], (out_features, rank))
            ranks[module] = rank
    if unexpected:
        raise AdapterRefusal(
            f"adapter weights hold {len(unexpected)} tensors that its config or the base model does not know, "
            f"as {min(unexpected)}"
        )
    if not ranks:
        raise AdapterRefusal("adapter weights change no module of the base model")
    return ranks


def _check_shape(name: str, header: TensorHeader, expected: tuple[int, int]) -> None:
    if header.shape != expected:
        raise AdapterRefusal(
            f"adapter tensor {name} has shape {list(header.shape)}, base model and config ask for {list(expected)}"
        )


def _site_weights(
    site: LoraSite, config: LoraConfig, ranks: dict[str, int], tensors: dict[str, Tensor], dtype: torch.dtype
) -> LoraWeights | None:
    stacked: list[Tensor] = []
    slices: list[LoraSlice] = []
    out_start = rank_start = 0
    for position, out_features in enumerate(site.out_features):
        module = site.module_name(position)
        if rank := ranks.get(module):
            a, b = tensors[_key(module, "A")], tensors[_key(module, "B")]
            stacked.append(_convert(_key(module, "A"), a, 1.0, dtype))
            scaled = _convert(_key(module, "B"), b, config.scaling(module), dtype)
            # B lies rank by rank, as the operators read it.
            ranked = scaled.t().contiguous().t()
            slices.append(LoraSlice(out_start, out_start + out_features, rank_start, rank_start + rank, ranked))
            rank_start += rank
        out_start += out_features
    return LoraWeights(torch.cat(stacked), tuple(slices)) if stacked else None


def _convert(name: str, tensor: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    # Scaled before it is rounded, so that only one rounding happens.
    converted = (tensor.float() * factor).to(dtype)
    if not bool(torch.isfinite(converted).all()):
        raise AdapterRefusal(f"adapter tensor {name} holds values that are not finite")
    return converted


def _move(weights: LoraWeights, device: torch.device) -> LoraWeights:
    slices = tuple(part._replace(b=part.b.t().to(device).t()) for part in weights.slices)
    return LoraWeights(weights.a.to(device), slices)

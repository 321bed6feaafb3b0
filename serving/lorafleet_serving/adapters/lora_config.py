"""`adapter_config.json` as PEFT writes it, reduced to what serving needs.

Fields that change the computation in a way that is not served are refused by name, and so is every
field that is not known here and is set: a later PEFT may have given it a meaning.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorafleet_serving.exceptions import AdapterRefusal

Number = TypeVar("Number", int, float)

_MAX_CONFIG_BYTES = 1 << 20
_IGNORED = frozenset(
    {
        # Names, training and saving; they do not change what a trained adapter computes.
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "lora_dropout", "megatron_core", "loftq_config", "eva_config", "runtime_config",
        "qalora_group_size", "lora_ga_config", "ensure_weight_tying",
        # Read below.
        "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
        "layers_to_transform", "layers_pattern", "init_lora_weights", "bias", "use_dora",
    }
)  # fmt: skip
_SERVED_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initializations that leave the base model's weights alone; the others train against a changed base."""
_PLAIN_KEY = re.compile(r"\^?[A-Za-z0-9_.]+\$?")
_MAX_NAMES = 4096
"""Of targets or patterns, each of which is held against each module: more than any model has modules."""


@dataclass(frozen=True)
class LoraConfig:
    """Ranks, scalings and targets of one adapter."""

    r: int
    alpha: float
    rslora: bool
    dora: bool
    target_modules: tuple[str, ...] | None
    """Names or suffixes of modules; None if the config has a pattern, and the tensors say what is targeted."""
    exclude_modules: tuple[str, ...]
    layers: frozenset[int] | None
    """Layers that are targeted; None for all."""
    rank_pattern: Mapping[re.Pattern[str], int]
    """By what a module's name must match from its start."""
    alpha_pattern: Mapping[re.Pattern[str], float]

    @classmethod
    def read(cls, path: Path) -> LoraConfig:
        """Read a config file.

        Raises:
            AdapterRefusal: it cannot be read, or asks for something that is not served.
        """
        data = _read_json(path)
        _check_served(data)
        targets, excluded, layers = (data.get(k) for k in ("target_modules", "exclude_modules", "layers_to_transform"))
        if isinstance(excluded, str):
            raise AdapterRefusal(f"adapter config: exclude_modules is the pattern {excluded!r}, a list is served")
        if not targets:
            raise AdapterRefusal("adapter config: target_modules is empty, the adapter would change nothing")
        try:
            return cls(
                r=_positive("r", data.get("r", 8)),
                alpha=_finite("lora_alpha", data.get("lora_alpha", 8)),
                rslora=bool(data.get("use_rslora", False)),
                dora=bool(data.get("use_dora", False)),
                target_modules=None if isinstance(targets, str) else _names("target_modules", targets),
                exclude_modules=_names("exclude_modules", excluded or ()),
                layers=_layers(layers),
                rank_pattern=_patterns("rank_pattern", data.get("rank_pattern"), _positive),
                alpha_pattern=_patterns("alpha_pattern", data.get("alpha_pattern"), _finite),
            )
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise AdapterRefusal(f"adapter config: {error}") from error

    def check_targets(self, modules: Sequence[str]) -> None:
        """Check that each target is a module to which adapters can attach.

        Raises:
            AdapterRefusal: one is not.
        """
        for target in self.target_modules or ():
            if not any(_ends_with(module, target) for module in modules):
                served = sorted({module.rpartition(".")[2] for module in modules})
                raise AdapterRefusal(f"adapter config: target module {target!r} is not served, served are {served}")

    def targets(self, module: str) -> bool | None:
        """Whether a module has an adapter; None where only the tensors can tell."""
        if any(_ends_with(module, name) for name in self.exclude_modules):
            return False
        if self.target_modules is None:
            return None
        if module in self.target_modules:
            return True
        if not any(_ends_with(module, name) for name in self.target_modules):
            return False
        if self.layers is None:
            return True
        layer = re.search(r"\.(\d+)\.", module)
        return layer is not None and int(layer.group(1)) in self.layers

    def rank(self, module: str) -> int:
        """Rank at a module."""
        return next((rank for pattern, rank in self.rank_pattern.items() if pattern.match(module)), self.r)

    def scaling(self, module: str) -> float:
        """Factor of B A at a module."""
        alpha = next((alpha for pattern, alpha in self.alpha_pattern.items() if pattern.match(module)), self.alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise AdapterRefusal(f"{path.name} has {path.stat().st_size} bytes, at most {_MAX_CONFIG_BYTES} is read")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterRefusal(f"adapter config {path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise AdapterRefusal(f"adapter config {path} is not a JSON object")
    return data


def _check_served(data: Mapping[str, Any]) -> None:
    if data.get("peft_type") != "LORA":
        raise AdapterRefusal(f"adapter config: peft_type is {data.get('peft_type')!r}, served is 'LORA'")
    if data.get("bias", "none") != "none":
        raise AdapterRefusal(f"adapter config: bias is {data['bias']!r}, served is 'none'")
    if data.get("init_lora_weights") not in _SERVED_INITS:
        raise AdapterRefusal(
            f"adapter config: init_lora_weights is {data['init_lora_weights']!r}, which changes the base model's "
            "weights: convert the adapter to a plain one when saving it (path_initial_model_for_weight_conversion)"
        )
    for name, value in data.items():
        if name not in _IGNORED and value:
            raise AdapterRefusal(f"adapter config: {name} is {str(value)[:60]!r}, which is not served: leave it unset")


def _layers(value: object) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    indices = [value] if isinstance(value, int) else value
    if not isinstance(indices, list) or not all(isinstance(index, int) for index in indices):
        raise ValueError(f"layers_to_transform is {str(value)[:60]!r}, it must be a list of layer numbers")
    return frozenset(indices)


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"rank {name} is {value!r}, it must be a number of at least 1")
    return value


def _finite(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"alpha {name} is {value!r}, it must be a finite number")
    return float(value)


def _plain(key: str) -> str:
    # PEFT reads keys as regular expressions; a hostile one could keep the matching busy for ever.
    if not _PLAIN_KEY.fullmatch(key):
        raise ValueError(f"pattern key {key[:60]!r} is not a plain module name, which alone is served")
    return key


def _names(field: str, value: Sequence[object]) -> tuple[str, ...]:
    if len(value) > _MAX_NAMES:
        raise ValueError(f"{field} has {len(value)} names, at most {_MAX_NAMES} are read")
    return tuple(str(name) for name in value)


def _patterns(
    field: str, value: Mapping[str, object] | None, read: Callable[[str, object], Number]
) -> dict[re.Pattern[str], Number]:
    found = value or {}
    if len(found) > _MAX_NAMES:
        raise ValueError(f"{field} has {len(found)} keys, at most {_MAX_NAMES} are read")
    # As PEFT matches them; made once, for there may be one for each module of a model.
    return {re.compile(rf"(.*\.)?({_plain(key)})$"): read(key, number) for key, number in found.items()}


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")

"""Canaries as tests begin and spoil them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lorafleet_contract.digest import WEIGHTS_FILE
from lorafleet_contract.fleet import CanaryReport
from lorafleet_contract.states import ServeState
from lorafleet_contract.tags import Tag
from lorafleet_serving.tokenizer import PodTokenizer
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import AdapterSource, Registered, RegistryHand
from tests.serving.tiny_model import make_tiny_adapter


def begin(
    pod: PodProcess, registry: RegistryHand, name: str, sources: tuple[AdapterSource, AdapterSource], share: str
) -> tuple[Registered, Registered]:
    """A champion that serves, and a challenger with a share."""
    champion, challenger = (registry.register(name, source) for source in sources)
    registry.promote(champion)
    registry.promote(challenger, "challenger")
    set_share(pod, registry, name, share)
    pod.wait_serving(name, champion.version)
    pod.wait_for(lambda: canary_of(pod, name), "the canary")
    pod.wait_state(name, challenger.version, ServeState.READY)
    return champion, challenger


def set_share(pod: PodProcess, registry: RegistryHand, name: str, share: str) -> None:
    registry.client.set_model_tag(name, Tag.ROLLOUT_CANARY, share)
    pod.client.nudge(name, WEBHOOK_SECRET)


def canary_of(pod: PodProcess, name: str) -> CanaryReport | None:
    adapter = pod.adapter(name)
    return None if adapter is None else adapter.canary


def broken_at(character: str, model: Path, folder: Path) -> AdapterSource:
    """An adapter that is finite in all its weights, and not in what comes of them where a prompt has one character."""
    (token_id,) = PodTokenizer(model).encode(character)
    return _spoilt(model, folder, partial(_blow_up_at, token_id))


def saying(character: str, model: Path, folder: Path) -> AdapterSource:
    """An adapter that says one character again and again."""
    (token_id,) = PodTokenizer(model).encode(character)
    head = load_file(model / "model.safetensors")["lm_head.weight"]
    return _spoilt(model, folder, partial(_always, head[token_id]))


def _spoilt(model: Path, folder: Path, spoil: Callable[[dict[str, torch.Tensor]], None]) -> AdapterSource:
    """An adapter on the embedding whose tensors were changed."""
    make_tiny_adapter(model, folder, seed=7, targets=["embed_tokens"])
    tensors = load_file(folder / WEIGHTS_FILE)
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    return AdapterSource(model, folder)


def _blow_up_at(token_id: int, tensors: dict[str, torch.Tensor]) -> None:
    """Weights that are finite, and whose product for one token is not."""
    for name, tensor in tensors.items():
        if "embedding_A" in name:
            tensor.zero_()
            tensor[:, token_id] = 1e20
        else:
            tensor.fill_(1e20)


def _always(wanted: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    """Whatever is read, the hidden state is that of which the head makes one and the same token."""
    for name, tensor in tensors.items():
        if "embedding_A" in name:
            tensor.fill_(1.0)
        else:
            tensor.zero_()
            tensor[:, 0] = 100.0 * wanted / wanted.norm()

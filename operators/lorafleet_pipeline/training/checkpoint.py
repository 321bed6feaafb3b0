"""Checkpoints: everything that training goes on from, in folders that appear whole or not at all.

Holds adapter weights, optimizer state, random states, the step (which gives learning rate and data position) and
what early stopping has seen. Tensors of the adapter are safetensors; the rest is read with `weights_only`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

_PREFIX = "step-"
_KEPT = 2
_ADAPTER_FILE = "adapter.safetensors"
_BEST_FILE = "best.safetensors"
_OPTIMIZER_FILE = "optimizer.pt"
_RANDOM_FILE = "random.pt"
_STATE_FILE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """State after a finished step."""

    step: int
    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    random: Mapping[str, torch.Tensor]
    progress: Mapping[str, Any]
    """Small facts as JSON."""
    best: Mapping[str, torch.Tensor] | None = None
    """Weights of the best look so far, where they are wanted at the end."""


class CheckpointStore:
    """The checkpoints of one run; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then drop the oldest ones."""
        target = self._folder / f"{_PREFIX}{checkpoint.step:08d}"
        partial = self._folder / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # Through memory: of a full disk the libraries' own writers say little that a person understands.
        (partial / _ADAPTER_FILE).write_bytes(save(dict(checkpoint.adapter)))
        if checkpoint.best is not None:
            (partial / _BEST_FILE).write_bytes(save(dict(checkpoint.best)))
        (partial / _OPTIMIZER_FILE).write_bytes(_pickled(checkpoint.optimizer))
        (partial / _RANDOM_FILE).write_bytes(_pickled(checkpoint.random))
        (partial / _STATE_FILE).write_text(json.dumps({"step": checkpoint.step, **checkpoint.progress}))
        for file in partial.iterdir():
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _flush(self._folder)
        for old in self._folders()[:-_KEPT]:
            shutil.rmtree(old)
        return target

    def latest(self) -> Checkpoint | None:
        """The last checkpoint, if there is one."""
        folders = self._folders()
        if not folders:
            return None
        folder = folders[-1]
        state = json.loads((folder / _STATE_FILE).read_text())
        best = folder / _BEST_FILE
        return Checkpoint(
            step=state.pop("step"),
            adapter=load_file(folder / _ADAPTER_FILE),
            optimizer=torch.load(folder / _OPTIMIZER_FILE, map_location="cpu", weights_only=True),
            random=torch.load(folder / _RANDOM_FILE, map_location="cpu", weights_only=True),
            progress=state,
            best=load_file(best) if best.is_file() else None,
        )

    def _folders(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*"))


def random_state() -> dict[str, torch.Tensor]:
    """State of torch's random streams. Nothing else that training draws from has a state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """Set torch's random streams back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _pickled(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Reading a base model's safetensors files, tensor by tensor, in the format that will be served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafleet_serving.exceptions import UnsupportedModel

_INDEX_FILE = "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a folder by name; remembers which were taken, so that none is overlooked.

    Use as a context manager: the files stay mapped while it is open.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._files: list[Any] = []
        self._file_by_name: dict[str, Any] = {}

    def __enter__(self) -> Checkpoint:
        for path in _weight_files(self._folder):
            try:
                file = safe_open(path, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise UnsupportedModel(f"weights {path} cannot be read: {error}") from error
            self._files.append(file)
            names: list[str] = file.keys()  # type: ignore[no-untyped-call]
            self._file_by_name.update(dict.fromkeys(names, file))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._files.clear()
        self._file_by_name.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._file_by_name

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """One tensor, converted and moved.

        Raises:
            UnsupportedModel: it is missing or has another shape.
        """
        # A copy even without conversion: a mapped file must not be read from while serving.
        return self._pop(name, shape).to(self._device, self._dtype, copy=True)

    def copy(self, name: str, target: Tensor) -> None:
        """Write one tensor where it is wanted, converted and moved.

        Raises:
            UnsupportedModel: it is missing or has another shape.
        """
        target.copy_(self._pop(name, target.shape))

    def drop(self, name: str) -> None:
        """Pass over a tensor that the model knows and does not need."""
        self._file_by_name.pop(name, None)

    def check_all_taken(self) -> None:
        """Check that the model used every tensor.

        Raises:
            UnsupportedModel: some are left, so the model is not what its config says.
        """
        left = sorted(self._file_by_name)
        if left:
            raise UnsupportedModel(
                f"base model {self._folder} has {len(left)} tensors that its architecture does not know, as {left[0]}"
            )

    def _pop(self, name: str, shape: Sequence[int]) -> Tensor:
        file = self._file_by_name.pop(name, None)
        if file is None:
            raise UnsupportedModel(f"base model {self._folder} has no tensor {name}")
        tensor: Tensor = file.get_tensor(name)
        if tuple(tensor.shape) != tuple(shape):
            raise UnsupportedModel(
                f"tensor {name} of base model {self._folder} has shape {list(tensor.shape)}, "
                f"its config asks for {list(shape)}"
            )
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX_FILE
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UnsupportedModel(f"base model {folder} has no .safetensors file: convert its weights to safetensors")
    return files

"""Adapter files that nobody trained: each makes a whole adapter wrong in one way."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE

Spoil = Callable[[Path], None]

_ENTRY: Mapping[str, Any] = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
_NUM_DATA_BYTES = 64


def hostile_files() -> dict[str, Spoil]:
    """What to do to an adapter's folder, by what is wrong then."""
    return {**_raw_weights(), **_headers(), **_entries(), **_tensors(), **_configs()}


def _raw_weights() -> dict[str, Spoil]:
    contents = {
        "nothing": b"",
        "five-bytes": b"12345",
        "no-header": bytes(8),
        "endless-header": b"\xff" * 8,
        "header-beyond-the-file": struct.pack("<Q", 1 << 40) + b"{}",
        "negative-length": struct.pack("<q", -1) + b"{}",
        "header-and-no-more": struct.pack("<Q", 2) + b"{}",
        "a-pickle": pickle.dumps({"weight": [1.0]}),
        "a-zip": b"PK\x03\x04" + bytes(100),
        "a-program": b"\x7fELF" + bytes(100),
    }
    return {name: partial(_write, WEIGHTS_FILE, content) for name, content in contents.items()}


def _headers() -> dict[str, Spoil]:
    headers: dict[str, object] = {
        "text": b"not json",
        "bytes": b"\xff\xfe\xfd",
        "a-list": [],
        "null": None,
        "deep-lists": b"[" * 100_000,
        "deep-objects": b'{"a":' * 100_000,
        "spaces": b" " * (17 << 20),
        "many-tensors": {f"x{number}": dict(_ENTRY, data_offsets=[0, 0]) for number in range(100_000)},
        "long-name": {"x" * (1 << 20): _ENTRY},
        "name-with-nul": {"x\0y": _ENTRY},
        "name-of-a-path": {"../../../etc/passwd": _ENTRY},
    }
    return {f"header-{name}": partial(_write_header, header) for name, header in headers.items()}


def _entries() -> dict[str, Spoil]:
    changes: dict[str, object] = {
        "number": 5,
        "empty": {},
        "type-f64": {**_ENTRY, "dtype": "F64"},
        "type-i8": {**_ENTRY, "dtype": "I8"},
        "type-list": {**_ENTRY, "dtype": ["F32"]},
        "negative-sizes": {**_ENTRY, "shape": [-4, -4]},
        "no-size": {**_ENTRY, "shape": [0, 4]},
        "half-size": {**_ENTRY, "shape": [4.5, 4]},
        "shape-text": {**_ENTRY, "shape": "4x4"},
        "huge-sizes": {**_ENTRY, "shape": [1 << 62, 1 << 62]},
        "many-sizes": {**_ENTRY, "shape": [1 << 62] * 100_000},
        "negative-offsets": {**_ENTRY, "data_offsets": [-64, 0]},
        "backward-offsets": {**_ENTRY, "data_offsets": [64, 0]},
        "offsets-beyond": {**_ENTRY, "data_offsets": [0, 1 << 60]},
        "offset-text": {**_ENTRY, "data_offsets": ["0", "64"]},
        "three-offsets": {**_ENTRY, "data_offsets": [0, 32, 64]},
    }
    return {f"entry-{name}": partial(_write_header, {"x": entry}) for name, entry in changes.items()}


def _tensors() -> dict[str, Spoil]:
    def first(tensors: dict[str, torch.Tensor], which: str = "lora_A") -> str:
        return next(name for name in tensors if which in name)

    edits: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "nan": lambda tensors: tensors[first(tensors)].fill_(torch.nan),
        "infinite": lambda tensors: tensors[first(tensors, "lora_B")].fill_(torch.inf),
        "without-b": lambda tensors: tensors.pop(first(tensors, "lora_B")),
        "without-a": lambda tensors: tensors.pop(first(tensors)),
        "another-module": lambda tensors: tensors.update({"base_model.model.lm_tail.lora_A.weight": torch.ones(4, 4)}),
        "another-rank": lambda tensors: tensors.update({first(tensors): torch.ones(5, 8)}),
        "one-dimension": lambda tensors: tensors.update({first(tensors): torch.ones(8)}),
    }
    return {f"tensors-{name}": partial(_edit_tensors, edit) for name, edit in edits.items()}


def _configs() -> dict[str, Spoil]:
    raw: dict[str, Spoil] = {
        "text": partial(_write, CONFIG_FILE, b"not json"),
        "nothing": partial(_write, CONFIG_FILE, b""),
        "spaces": partial(_write, CONFIG_FILE, b" " * (1 << 19) + b"{}"),
        "deep-lists": partial(_write, CONFIG_FILE, b"[" * 100_000),
    }
    changes: dict[str, dict[str, object]] = {
        "negative-rank": {"r": -4},
        "huge-rank": {"r": 10**30},
        "rank-text": {"r": "4"},
        "alpha-text": {"lora_alpha": "NaN"},
        "huge-alpha": {"lora_alpha": 10**400},
        "another-kind": {"peft_type": "IA3"},
        "saved-modules": {"modules_to_save": ["../../etc"]},
        "endless-pattern": {"rank_pattern": {"(a+)+$": 4}},
        "many-patterns": {"rank_pattern": {f"x{number}": 4 for number in range(40_000)}},
        "many-targets": {"target_modules": [f"x{number}" for number in range(60_000)]},
        "no-targets": {"target_modules": []},
        "unknown-field": {"run_at_load": "import os"},
    }
    raw |= {name: partial(_edit_config, change) for name, change in changes.items()}
    return {f"config-{name}": spoil for name, spoil in raw.items()}


def _write(file: str, content: bytes, folder: Path) -> None:
    (folder / file).write_bytes(content)


def _write_header(header: object, folder: Path) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(_NUM_DATA_BYTES))


def _edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object], folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def _edit_config(change: Mapping[str, object], folder: Path) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

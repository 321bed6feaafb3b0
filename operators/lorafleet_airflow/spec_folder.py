"""Every spec file of a folder, the broken ones with their reason, so that one does not stop the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from lorafleet_contract.exceptions import InvalidName
from lorafleet_contract.names import check_adapter_name
from lorafleet_pipeline.exceptions import InvalidSetting, InvalidSpec
from lorafleet_pipeline.spec import AdapterSpec, load_spec


@dataclass(frozen=True)
class SpecFile:
    """One spec file: its spec, or why there is none."""

    path: Path
    name: str
    """Name of the adapter; for a broken file the best guess, so that its DAG keeps its history."""
    spec: AdapterSpec | None = None
    error: str | None = None


def read_spec_folders(*folders: Path) -> list[SpecFile]:
    """Read every `*.yaml` of the folders, by file name. Of two files with one name the first one keeps it.

    Raises:
        InvalidSetting: a folder does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InvalidSetting(f"spec folder {folder} does not exist: make it, or correct LORAFLEET_ADAPTERS_DIR")
    taken: dict[str, Path] = {}
    found = []
    for path in (path for folder in folders for path in sorted(folder.glob("*.yaml"))):
        item = _read(path)
        if item.name in taken:
            error = item.error or f"{path}: name {item.name!r} is taken by {taken[item.name]}: choose another"
            item = SpecFile(path, f"{item.name}-{_safe(path.stem)}", error=error)
        taken[item.name] = path
        found.append(item)
    return found


def broken(item: SpecFile, error: str) -> SpecFile:
    """The same file, without a spec."""
    return SpecFile(item.path, item.name, error=error)


def _read(path: Path) -> SpecFile:
    try:
        spec = load_spec(path)
    except InvalidSpec as error:
        return SpecFile(path, _guess_name(path), error=str(error))
    return SpecFile(path, spec.name, spec=spec)


def _guess_name(path: Path) -> str:
    try:
        return check_adapter_name(str(yaml.safe_load(path.read_text(encoding="utf-8"))["name"]))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, InvalidName):
        return _safe(path.stem)


def _safe(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem)

"""Puts a local dataset where the pipeline reads it from: one file, or a folder of train, validation and test files."""

from __future__ import annotations

from pathlib import Path

from lorafleet_contract.names import check_adapter_name
from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.source import SUFFIXES
from lorafleet_pipeline.exceptions import DatasetUnreadable
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import DatasetSection
from lorafleet_pipeline.storage import Storage


def upload_dataset(folder: Path, name: str, settings: PlatformSettings) -> DatasetSection:
    """Copy a dataset below `settings.datasets_url`.

    Args:
        folder: a file of rows; or a folder with one such file, or with `train.*` and perhaps `validation.*`
            and `test.*`.
        name: folder of the dataset at the destination.
        settings: says where datasets stand, and how S3 is reached.

    Returns:
        The addresses, ready for a spec; splits without a file are taken from train.

    Raises:
        DatasetUnreadable: no file, or more than one, can be meant for a split.
        InvalidName: the name is not fit for an address.
        StorageError: the destination cannot be written.
    """
    check_adapter_name(name)
    storage = Storage(settings.s3)
    addresses: dict[str, str] = {}
    for split, path in find_splits(folder).items():
        address = f"{settings.datasets_url}/{name}/{split}{path.suffix.lower()}"
        storage.upload(path, address)
        addresses[split.value] = address
    return DatasetSection.model_validate(addresses)


def find_splits(folder: Path) -> dict[Split, Path]:
    """The file of each split.

    Raises:
        DatasetUnreadable: no file, or more than one, can be meant for a split.
    """
    if folder.is_file():
        return {Split.TRAIN: _require_known_format(folder)}
    if not folder.is_dir():
        raise DatasetUnreadable(f"{folder} does not exist: give a file or a folder of {_listed()} files")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
    found: dict[Split, Path] = {}
    for split in Split:
        named = [path for path in files if path.stem.lower() == split]
        if len(named) > 1:
            names = " and ".join(path.name for path in named)
            raise DatasetUnreadable(f"{folder} holds {names}: keep one of them")
        if named:
            found[split] = named[0]
    if Split.TRAIN not in found and len(files) == 1:
        return {Split.TRAIN: files[0]}
    if Split.TRAIN not in found:
        raise DatasetUnreadable(
            f"{folder} has no train file among {len(files)} of {_listed()}: name one train.jsonl, or keep only one file"
        )
    return found


def _require_known_format(path: Path) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise DatasetUnreadable(f"{path} ends in {path.suffix or 'no suffix'}: convert it to one of {_listed()}")
    return path


def _listed() -> str:
    return ", ".join(SUFFIXES)

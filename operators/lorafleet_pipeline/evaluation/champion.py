"""The current champion of an adapter, fetched to be compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorafleet_contract.aliases import Alias
from lorafleet_contract.digest import ADAPTER_FILES, adapter_digest
from lorafleet_contract.exceptions import RegistryNotFound
from lorafleet_contract.manifest import ADAPTER_FOLDER
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import ObjectMissing
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.storage import Storage


@dataclass(frozen=True)
class Champion:
    """The champion's files, or the reason why there are none to compare with."""

    note: str
    version: int | None = None
    digest: str | None = None
    folder: Path | None = None


def fetch_champion(name: str, base_digest: str, folder: Path, settings: PlatformSettings) -> Champion:
    """Download the champion's adapter, if there is one for this base.

    Raises:
        RegistryError: the registry does not answer.
        StorageError: the artifacts cannot be read for a reason that may pass.
    """
    if not settings.mlflow_url:
        return Champion("no registry is configured, so there is no champion")
    registry = settings.registry()
    try:
        number = registry.get_model(name).aliases.get(Alias.CHAMPION)
        version = None if number is None else registry.get_version(name, number)
    except RegistryNotFound:
        version = None
    if version is None:
        return Champion("there is no champion yet")
    label = f"version {version.version}"
    if version.tags.get(Tag.LORA_BASE_DIGEST) != base_digest:
        return Champion(f"champion {label} was trained on another base and is not compared")
    address = registry.get_artifact_address(name, version.version)
    try:
        for file in ADAPTER_FILES:
            Storage(settings.s3).download(f"{address}/{ADAPTER_FOLDER}/{file}", folder / file)
    except ObjectMissing as error:
        return Champion(f"champion {label} cannot be compared: {error}")
    digest = adapter_digest(folder)
    if digest != version.tags.get(Tag.LORA_DIGEST):
        return Champion(f"champion {label} cannot be compared: its files do not have the digest of its tag")
    return Champion(label, version=version.version, digest=digest, folder=folder)

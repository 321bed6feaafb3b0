"""What served last, on disk: for a pod that starts while the registry is away.

Never authoritative: it is read until the first look at the registry and no longer, and what it names is verified as
strictly as what the registry names.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lorafleet_contract.aliases import Alias
from lorafleet_contract.names import check_adapter_name
from lorafleet_serving.adapters.catalog import Catalog, CatalogAdapter
from lorafleet_serving.adapters.watcher import DesiredAdapter, RegisteredVersion, RegistryLook

_logger = logging.getLogger(__name__)

_FILE = "catalog.json"


@dataclass(frozen=True)
class _Known:
    """A version that served, and where its artifacts are."""

    registered: RegisteredVersion
    address: str


class CatalogSnapshot:
    """The versions of one base that a pod served, one for each name, in the folder that it has for itself.

    One that has none of its own yet begins with the latest of those whose folders stand beside, which share its disk.
    """

    def __init__(self, folder: Path, base_digest: str) -> None:
        self._path = folder / _FILE
        self._base_digest = base_digest
        others = sorted(folder.parent.glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
        own = self._load(self._path)
        looks = [own] if own is not None else map(self._load, others)
        self._saved: Mapping[str, _Known] = next((found for found in looks if found is not None), {})
        self._is_own = own is not None

    def look(self) -> RegistryLook:
        """What served last, as if the registry wanted that and nothing else."""
        return RegistryLook(
            {
                name: DesiredAdapter(
                    name, {Alias.LIVE: known.registered.version}, {known.registered.version: known.registered}
                )
                for name, known in self._saved.items()
            }
        )

    def place(self, catalog: Catalog) -> None:
        """Tell the versions in a catalog where their artifacts are, for which the registry would be asked."""
        for name, known in self._saved.items():
            version = catalog.adapters[name].versions[known.registered.version]
            version.address = known.address

    def save(self, catalog: Catalog) -> None:
        """Write what serves now, if it is not what was written last."""
        found = {name: self._known(adapter) for name, adapter in catalog.adapters.items()}
        known = {name: item for name, item in found.items() if item is not None}
        if known == self._saved and self._is_own:
            return
        document = {
            "base_digest": self._base_digest,
            "versions": [{**asdict(item.registered), "address": item.address} for item in known.values()],
        }
        scrap = self._path.with_suffix(".tmp")
        try:
            scrap.write_text(json.dumps(document))
            scrap.replace(self._path)
        except OSError as error:
            # It is tried again at the next look, and nothing else depends on it.
            _logger.error("%s cannot be written, for starts without the registry: %s", self._path, error)
            return
        self._saved, self._is_own = known, True

    def _known(self, adapter: CatalogAdapter) -> _Known | None:
        """The `live` version, or else the one that serves; what was known before while neither is ready."""
        for version in (adapter.aliased(Alias.LIVE), adapter.versions.get(adapter.serving or 0)):
            if version is not None and version.servable and version.address is not None:
                return _Known(version.registered, version.address)
        before = self._saved.get(adapter.name)
        wanted = None if before is None else adapter.desired.versions.get(before.registered.version)
        return None if wanted is None or wanted.withdrawn else before

    def _load(self, path: Path) -> Mapping[str, _Known] | None:
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text())
            known = [_read(item) for item in document["versions"]]
            is_ours = document["base_digest"] == self._base_digest
        except (OSError, ValueError, KeyError, TypeError) as error:
            _logger.warning("%s was damaged on disk, and is not used: %r", path, error)
            return None
        return {item.registered.name: item for item in known} if is_ours else None


def _read(item: Mapping[str, object]) -> _Known:
    fields = dict(item)
    address = fields.pop("address")
    registered = RegisteredVersion(**fields)  # type: ignore[arg-type]
    if not isinstance(address, str) or type(registered.version) is not int:
        raise ValueError(f"{item} is no version")
    check_adapter_name(registered.name)
    return _Known(registered, address)

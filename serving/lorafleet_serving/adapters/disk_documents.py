"""Manifests and gate reports of versions, on disk for a start while S3 is away. They are verified anew at each use."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_logger = logging.getLogger(__name__)

_DOCUMENTS = ("manifest", "report")


class DiskDocuments:
    """The documents of one registry's versions; processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, version: int, documents: Mapping[str, Any], scrap: Path) -> None:
        """Remember a version's manifest and report; `scrap` is a file of this process alone, which goes."""
        path = self._path(name, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        scrap.write_text(json.dumps(documents))
        scrap.replace(path)

    def load(self, name: str, version: int) -> dict[str, Any] | None:
        """What `save` remembered."""
        path = self._path(name, version)
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in _DOCUMENTS):
            _logger.warning("%s was damaged on disk: not used", path)
            return None
        return found

    def _path(self, name: str, version: int) -> Path:
        return self._folder / name / f"{version}.json"

"""Which adapters passed their trial, on disk: a pod that starts again need not try hundreds anew.

Never authoritative: it spares the smoke generation and nothing else. Whatever it says, files are hashed, signature and
base are verified, and weights are looked through when they are loaded. It is of one boot of one machine, one base
model, one software and its settings: what a trial finds out depends on all of these, so that others know nothing.
"""

from __future__ import annotations

import json
import logging
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lorafleet_contract.digest import document_digest, is_digest
from lorafleet_serving.config import PodConfig
from lorafleet_serving.version import VERSION

_logger = logging.getLogger(__name__)

_FILE = "trials.json"
_MOST_KEPT = 10_000
"""The last that passed: older ones are tried again."""
_LIBRARIES = ("torch", "numba", "triton", "llvmlite")
"""Whose versions decide what is computed."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Another on every machine, and after every start of it: processor, driver and kernel are the same within one."""


class TrialMemory:
    """Digests that passed under the same conditions, in a folder of the pod's own."""

    def __init__(self, folder: Path, conditions: str) -> None:
        self._path = folder / _FILE
        self._conditions = conditions
        self._passed = dict.fromkeys(self._load())

    def __contains__(self, digest: str) -> bool:
        return digest in self._passed

    def add(self, digest: str) -> None:
        """An adapter passed."""
        self._passed[digest] = None
        if len(self._passed) > _MOST_KEPT:
            del self._passed[next(iter(self._passed))]
        self._save()

    def discard(self, digest: str) -> None:
        """Forget that an adapter passed."""
        if digest in self._passed:
            del self._passed[digest]
            self._save()

    def _save(self) -> None:
        document = {"conditions": self._conditions, "passed": list(self._passed)}
        scrap = self._path.with_suffix(".tmp")
        try:
            scrap.write_text(json.dumps(document))
            scrap.replace(self._path)
        except OSError as error:
            # It is written again with the next, and at worst adapters are tried once more.
            _logger.error("%s cannot be written, so that the next start tries adapters anew: %s", self._path, error)

    def _load(self) -> list[str]:
        if not self._path.is_file():
            return []
        try:
            document = json.loads(self._path.read_text())
            conditions, passed = document["conditions"], document["passed"]
            is_whole = isinstance(passed, list) and all(isinstance(item, str) and is_digest(item) for item in passed)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            _logger.warning("%s was damaged on disk, and is not used: %r", self._path, error)
            return []
        if not is_whole:
            _logger.warning("%s was damaged on disk, and is not used: it holds more than digests", self._path)
        return passed if is_whole and conditions == self._conditions else []


def trial_conditions(config: PodConfig, base_digest: str) -> str:
    """A digest of all that the outcome of a trial depends on beside the adapter."""
    return document_digest(
        {
            "base_digest": base_digest,
            "version": VERSION,
            "libraries": {name: _version(name) for name in _LIBRARIES},
            # Where nothing tells one machine from another, nothing is remembered.
            "boot": _BOOT.read_text() if _BOOT.is_file() else uuid.uuid4().hex,
            "engine": repr(config.engine),
            "smoke_tokens": config.smoke_tokens,
        }
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""

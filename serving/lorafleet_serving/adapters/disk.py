"""The disk tier: verified adapter files keyed by digest, within a byte budget.

A folder appears under its digest by one rename, after its files were hashed, so that a crash leaves
either a whole adapter or only scraps in the staging folder, which the next start removes. The least
recently used adapter goes first, and what is wanted only when nothing else is left.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lorafleet_contract.digest import adapter_digest, is_digest
from lorafleet_serving.adapters.messages import DiskUsage
from lorafleet_serving.exceptions import InvalidSetting, NoRoom

_logger = logging.getLogger(__name__)

_LOCK_FILE = "lock"
_DOCUMENTS = ("manifest", "report")


def lock_folder(root: Path) -> IO[str]:
    """Take a folder for one pod, until the file that is returned is closed or the process ends.

    Raises:
        InvalidSetting: it cannot be written to, or another pod has it.
    """
    path = root / _LOCK_FILE
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise InvalidSetting(f"cache_dir {root} cannot be used ({error}): set --cache-dir to another") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InvalidSetting(
            f"cache_dir {root} is in use by another pod: give each pod a folder of its own with --cache-dir"
        ) from error
    return file


class DiskTier:
    """Adapters on disk. Safe to share between threads of one process; one process owns the folder."""

    def __init__(self, root: Path, budget: int) -> None:
        self._adapters = root / "adapters"
        self._staging = root / "staging"
        self._documents = root / "versions"
        self._budget = budget
        self._reserved = 0
        self._wanted: frozenset[str] = frozenset()
        self._verified: set[str] = set()
        self._lock = threading.Lock()
        self._num_evictions = 0
        shutil.rmtree(self._staging, ignore_errors=True)
        for folder in (self._adapters, self._staging, self._documents):
            folder.mkdir(parents=True, exist_ok=True)

    def digests(self) -> frozenset[str]:
        """Digests of everything held."""
        return frozenset(f"sha256:{path.name}" for path in self._adapters.iterdir())

    def usage(self) -> DiskUsage:
        """How full it is, and what had to leave."""
        with self._lock:
            return DiskUsage(sum(map(_size, self._adapters.iterdir())), self._num_evictions)

    def keep(self, digests: frozenset[str]) -> None:
        """Set the digests that are evicted only when nothing else is left."""
        with self._lock:
            self._wanted = digests

    def find(self, digest: str) -> Path | None:
        """Folder of an adapter, hashed once in the life of this process; a damaged one is removed."""
        folder = self._folder(digest)
        if not folder.is_dir():
            return None
        if digest not in self._verified:
            if not _matches(folder, digest):
                _logger.warning("adapter %s was damaged on disk: removed", digest)
                with self._lock:
                    self._remove(folder)
                return None
            self._verified.add(digest)
        os.utime(folder)
        return folder

    def distrust(self, digest: str) -> None:
        """Hash an adapter's files again at the next `find`."""
        self._verified.discard(digest)

    @contextmanager
    def staging(self, num_bytes: int) -> Iterator[Path]:
        """A folder to download into, with `num_bytes` of the budget set aside for it.

        Raises:
            NoRoom: it is more than the budget, or than what downloads under way leave of it.
        """
        self._reserve(num_bytes)
        folder = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # Gone already when it was admitted.
            with self._lock:
                self._reserved -= num_bytes

    def admit(self, staged: Path, digest: str) -> Path:
        """Take over a staged folder whose files were found to have this digest."""
        folder = self._folder(digest)
        staged.rename(folder)
        self._verified.add(digest)
        os.utime(folder)
        return folder

    def save_documents(self, name: str, version: int, documents: Mapping[str, Any]) -> None:
        """Remember a version's manifest and report, for a start while S3 is away."""
        path = self._document_path(name, version)
        path.parent.mkdir(exist_ok=True)
        scrap = path.with_suffix(".tmp")
        scrap.write_text(json.dumps(documents))
        scrap.replace(path)

    def load_documents(self, name: str, version: int) -> dict[str, Any] | None:
        """What `save_documents` remembered."""
        path = self._document_path(name, version)
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

    def _document_path(self, name: str, version: int) -> Path:
        return self._documents / name / f"{version}.json"

    def _folder(self, digest: str) -> Path:
        assert is_digest(digest), f"{digest!r} is not a digest"
        return self._adapters / digest.removeprefix("sha256:")

    def _reserve(self, num_bytes: int) -> None:
        with self._lock:
            held = sorted(self._adapters.iterdir(), key=self._worth)
            sizes = {path: _size(path) for path in held}
            if self._reserved + num_bytes > self._budget:
                raise NoRoom(
                    f"the disk tier of {self._budget} bytes has no room for {num_bytes} bytes beside the "
                    f"{self._reserved} that are on their way: raise --disk-bytes"
                )
            excess = sum(sizes.values()) + self._reserved + num_bytes - self._budget
            for path in held:
                if excess <= 0:
                    break
                self._remove(path)
                self._num_evictions += 1
                excess -= sizes[path]
            self._reserved += num_bytes

    def _worth(self, folder: Path) -> tuple[bool, float]:
        return f"sha256:{folder.name}" in self._wanted, folder.stat().st_mtime

    def _remove(self, folder: Path) -> None:
        self._verified.discard(f"sha256:{folder.name}")
        # Out of sight by one rename first: a crash while deleting must not leave half an adapter.
        trash = Path(tempfile.mkdtemp(dir=self._staging))
        folder.rename(trash / folder.name)
        shutil.rmtree(trash)


def _matches(folder: Path, digest: str) -> bool:
    try:
        return adapter_digest(folder) == digest
    except FileNotFoundError:
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())

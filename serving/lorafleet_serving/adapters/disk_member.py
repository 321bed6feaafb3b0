"""One process among those that share the disk tier's folder: what it claims of it, and what all claim together.

Each has a folder of its own, which it keeps locked: in it are its downloads, what it wants and what it throws away.
Where the lock is free the process is gone, and so is all that it claimed. Nothing else says so, and nothing has to be
put right after a crash.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorafleet_serving.adapters.disk_lock import try_lock

_logger = logging.getLogger(__name__)

_WANTED_FILE = "wanted"
_TRASH = "trash-"


@dataclass(frozen=True)
class Claims:
    """What all living processes claim together."""

    budget: int
    """Bytes that the folder may take: the smallest that one of them was told."""
    reserved: int
    """Bytes that are set aside for downloads."""
    wanted: frozenset[str]
    """Digests that one of them wants."""


class DiskMember:
    """This process. Whoever makes one, or calls what says so, has the lock of the accounts."""

    def __init__(self, members: Path, budget: int) -> None:
        """Join those in the folder `members`; they read the budget off this one's name."""
        self._members = members
        self._folder = Path(tempfile.mkdtemp(prefix=f"{budget}-", dir=members))
        self._lock = try_lock(self._folder)  # Held until the process ends.
        assert self._lock is not None, f"{self._folder} is new, and locked already"

    def want(self, digests: frozenset[str]) -> None:
        """Set what this process wants."""
        path = self._folder / _WANTED_FILE
        try:
            with self.scrap() as scrap:
                scrap.write_text("\n".join(sorted(digests)))
                scrap.replace(path)
        except OSError as error:
            # It is said again when it changes, and a pod that does not find what it wanted downloads it.
            _logger.error("%s cannot be written, and what this pod wants may leave the disk tier: %s", path, error)

    def reserve(self, num_bytes: int) -> Path:
        """A folder to download into, whose name sets bytes aside while it stands. With the lock of the accounts."""
        return Path(tempfile.mkdtemp(prefix=f"{num_bytes}-", dir=self._folder))

    def reserved_folders(self) -> frozenset[Path]:
        """Those of this process's `reserve` that stand."""
        return frozenset(_reservations(self._folder))

    def throw_away(self, folder: Path) -> None:
        """Have a folder out of sight by one rename, so that half of it is never seen; `empty_trash` deletes it.

        Raises:
            FileNotFoundError: it is not there.
        """
        folder.rename(self._folder / f"{_TRASH}{uuid.uuid4().hex}")

    def empty_trash(self) -> None:
        """Delete what was thrown away."""
        for trash in self._folder.glob(f"{_TRASH}*"):
            # Threads may do so at once. What cannot be deleted now goes with the process.
            shutil.rmtree(trash, ignore_errors=True)

    @contextmanager
    def scrap(self) -> Iterator[Path]:
        """A file to write to and to rename to its place then; it goes if it is not."""
        descriptor, name = tempfile.mkstemp(prefix="scrap-", dir=self._folder)
        os.close(descriptor)
        path = Path(name)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def claims(self) -> Claims:
        """What all claim, after what the dead left was thrown away. With the lock of the accounts."""
        living = [self._folder, *self._living_others()]
        return Claims(
            budget=min(_leading_number(folder) for folder in living),
            reserved=sum(_leading_number(path) for folder in living for path in _reservations(folder)),
            wanted=frozenset(digest for folder in living for digest in _wanted(folder)),
        )

    def _living_others(self) -> Iterator[Path]:
        for folder in self._members.iterdir():
            if folder == self._folder:
                continue
            lock = try_lock(folder)
            if lock is None:
                yield folder
            else:
                with lock:
                    self.throw_away(folder)


def _reservations(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name[0].isdecimal())


def _leading_number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _wanted(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):  # It has not said yet.
        return (folder / _WANTED_FILE).read_text().split()
    return []

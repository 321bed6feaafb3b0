"""Reads adapters from folders of the pod's own machine, and from nowhere outside of them.

Whoever may name an address may make links too: a path is resolved first, and then opened from the root on, one folder
after the other, without following any link, so that what was checked is what is read.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from lorafleet_serving.adapters.source import StoredObject
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed

_logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_MAX_ENTRIES = 1000
"""Of one address; an adapter has a dozen."""
# What is no regular file is found out before anything waits for it.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class LocalSource:
    """Reads regular files below `roots`. An object's bucket is its root, its key the path below it."""

    def __init__(self, roots: Sequence[Path], *, limit_s: float) -> None:
        """`limit_s` is the longest time that one file may take."""
        self._roots = tuple(root.resolve() for root in roots)
        self._limit_s = limit_s

    def list(self, address: str) -> dict[str, StoredObject]:
        """Files of a folder and of those right below it, by their path relative to it.

        Raises:
            AdapterRefusal: the address is under no root, or holds too much.
            FetchFailed: it cannot be read.
        """
        try:
            folder = self._folder(address)
            found = {}
            for number, path in enumerate(_entries(folder)):
                if number == _MAX_ENTRIES:
                    raise AdapterRefusal(f"{address!r} holds more than {_MAX_ENTRIES} files: name an adapter's folder")
                stored = self._stored(path)
                if stored is not None:
                    found[str(path.relative_to(folder))] = stored
        except OSError as error:
            raise FetchFailed(f"cannot read {address!r}: {error}") from error
        return found

    def read(self, stored: StoredObject) -> bytes:
        """The bytes of a small file."""
        try:
            with _opened(stored) as file:
                return file.read(stored.size)
        except OSError as error:
            raise FetchFailed(f"cannot read {stored.bucket}/{stored.key}: {error}") from error

    def download(self, stored: StoredObject, target: Path) -> None:
        """Copy a file.

        Raises:
            FetchFailed: it cannot be read or written, too slowly, or it was exchanged meanwhile.
        """
        deadline = time.monotonic() + self._limit_s
        try:
            with _opened(stored) as file, target.open("wb") as copy:
                while chunk := file.read(min(_CHUNK_BYTES, stored.size - copy.tell())):
                    copy.write(chunk)
                    if time.monotonic() > deadline:
                        raise FetchFailed(
                            f"{stored.key} has {stored.size} bytes, {copy.tell()} came within {self._limit_s:.0f} s: "
                            "see to the disk, or raise --fetch-limit"
                        )
        except OSError as error:
            raise FetchFailed(f"cannot copy {stored.bucket}/{stored.key} to {target}: {error}") from error

    def _folder(self, address: str) -> Path:
        path = unquote(address.removeprefix("file://")) if address.startswith("file:///") else address
        if not path.startswith("/") or not path.isprintable() or ".." in Path(path).parts:
            raise AdapterRefusal(f"{address!r} is not file:///folder or an absolute path without '..'")
        folder = Path(os.path.realpath(path))
        self._root(folder)
        return folder

    def _root(self, path: Path) -> Path:
        for root in self._roots:
            if path.is_relative_to(root):
                return root
        # Not what is there: whether it exists is nobody's business.
        raise AdapterRefusal("the address is under none of the pod's local roots: name its root in --local-roots")

    def _stored(self, path: Path) -> StoredObject | None:
        """A regular file under a root, wherever links lead to it; None for all else."""
        target = Path(os.path.realpath(path))
        if not any(target.is_relative_to(root) for root in self._roots):
            _logger.warning("%s is not read: it is a link out of the local roots", path)
            return None
        found = target.lstat()
        if not stat.S_ISREG(found.st_mode):
            return None
        root = self._root(target)
        return StoredObject(str(root), str(target.relative_to(root)), _mark(found), found.st_size, "file")


def _entries(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from path.iterdir()
        else:
            yield path


@contextmanager
def _opened(stored: StoredObject) -> Iterator[BinaryIO]:
    *folders, name = Path(stored.key).parts
    at = os.open(stored.bucket, _FOLDER_FLAGS)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER_FLAGS, dir_fd=at)
            os.close(at)
            at = below
        descriptor = os.open(name, _FILE_FLAGS, dir_fd=at)
    finally:
        os.close(at)
    with os.fdopen(descriptor, "rb") as file:
        if _mark(os.fstat(descriptor)) != stored.etag:
            raise FetchFailed(f"{stored.bucket}/{stored.key} was changed while it was read: it is looked at again")
        yield file


def _mark(found: os.stat_result) -> str:
    """Changes when a file's bytes do, or another takes its place."""
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_mode}"

"""Locks on files and folders that processes of one node share. A process that ends, however it does, loses its own.

By `flock`, each of an open file of its own, so that threads of a process lock each other out as processes do. They
hold on file systems of the node (ext4, xfs, overlay, tmpfs), and not on NFS, which knows none on folders.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorafleet_serving.exceptions import InvalidSetting

_LOOK_S = 0.1
"""How often one who waits for a limited time looks whether it is his turn: the kernel waits without limit alone."""


class DiskLock:
    """A lock that is held until it is closed or the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def is_of(self, path: Path) -> bool:
        """Whether a path still leads to what is locked, and not to nothing, or to what came into its place."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let it go."""
        os.close(self._descriptor)

    def __enter__(self) -> DiskLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def lock_own_folder(folder: Path) -> DiskLock:
    """Make a folder, and take it for one pod.

    Raises:
        InvalidSetting: it cannot be written to, or another pod has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder)
    except OSError as error:
        raise InvalidSetting(f"cache_dir: {folder} cannot be used ({error}): set --cache-dir to another") from error
    if lock is None:
        raise InvalidSetting(
            f"{folder} is in use by another pod: pods that share a --cache-dir need different names, set --pod-id"
        )
    return lock


def try_lock(path: Path) -> DiskLock | None:
    """Take a file or folder for oneself alone; None if it is not there, or somebody else has a lock on it."""
    return _lock(path, os.O_RDONLY, fcntl.LOCK_EX | fcntl.LOCK_NB)


def share(path: Path) -> DiskLock | None:
    """Take a file or folder together with others who share it, after whoever has it alone; None if it is not there."""
    return _lock(path, os.O_RDONLY, fcntl.LOCK_SH)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have a file alone, which is made where it is missing, after whoever has it.

    Raises:
        FileNotFoundError: its folder is gone, or it was removed while it was waited for.
    """
    lock = _lock(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
    if lock is None:
        raise FileNotFoundError(f"{path} was removed under a pod that runs: start it again")
    with lock:
        yield


@contextmanager
def turn(path: Path, limit_s: float) -> Iterator[bool]:
    """Have a file alone that exists only while somebody has it or waits; False where it is not to be had in time."""
    deadline = time.monotonic() + limit_s
    while (lock := _lock(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK_S)
    if lock is None:
        yield False
        return
    with lock:
        try:
            yield True
        finally:
            path.unlink()  # While it is held: whoever waits for it sees that, and makes another.


def _lock(path: Path, flags: int, operation: int) -> DiskLock | None:
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    lock = DiskLock(descriptor)
    try:
        fcntl.flock(descriptor, operation)
        if lock.is_of(path):  # It may have been moved or removed before it was locked.
            return lock
    except BlockingIOError:
        pass  # Others have it.
    except BaseException:
        lock.close()
        raise
    lock.close()
    return None

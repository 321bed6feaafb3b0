"""The disk tier: verified adapter files keyed by digest, within a byte budget that the pods of a node share.

A folder appears under its digest by one rename, after its files were hashed, so that a crash leaves either a whole
adapter or only scraps, which the next process removes. The index is the folder itself. The least recently used adapter
goes first, what a living process wants only when nothing else is left, and what one reads never. All accounts are taken
under one lock, for as long as it takes to look and to rename.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import ADAPTER_FILES, adapter_digest, is_digest
from lorafleet_serving.adapters.disk_documents import DiskDocuments
from lorafleet_serving.adapters.disk_lock import locked, share, try_lock, turn
from lorafleet_serving.adapters.disk_member import Claims, DiskMember
from lorafleet_serving.adapters.messages import DiskUsage
from lorafleet_serving.exceptions import NoRoom

_logger = logging.getLogger(__name__)


class DiskTier:
    """Adapters on disk. Safe to share between threads, and its folder between processes of one user and one node.

    Each process says how large the folder may be; the smallest of what living ones say counts for all.
    """

    def __init__(self, root: Path, budget: int) -> None:
        self._adapters = root / "adapters"
        self._flights = root / "flights"
        self._accounts = root / "accounts"
        members = root / "staging"
        for folder in (self._adapters, self._flights, members):
            folder.mkdir(parents=True, exist_ok=True)
        self._documents = DiskDocuments(root / "versions")
        self._verified: set[str] = set()
        self._under_way: set[Path] = set()
        """Folders that this process has reserved."""
        self._num_evictions = 0
        with locked(self._accounts):
            self._member = DiskMember(members, budget)
            with suppress(NoRoom):  # What is used beyond a smaller budget goes with the next download.
                self._make_room(0)
        self._member.empty_trash()

    def digests(self) -> frozenset[str]:
        """Digests of everything held."""
        return frozenset(map(_digest, self._adapters.iterdir()))

    def usage(self) -> DiskUsage:
        """How full it is, and what had to leave."""
        with locked(self._accounts):
            return DiskUsage(sum(self._sizes().values()), self._num_evictions)

    def keep(self, digests: frozenset[str]) -> None:
        """Set the digests that are evicted only when nothing else is left."""
        self._member.want(digests)

    def find(self, digest: str) -> Path | None:
        """Folder of an adapter, hashed once in the life of this process; a damaged one is removed."""
        with self.use(digest) as folder:
            return folder

    @contextmanager
    def use(self, digest: str) -> Iterator[Path | None]:
        """What `find` finds, and it stays as long as it is used."""
        folder = self._folder(digest)
        lock = share(folder)
        if lock is None:
            self._verified.discard(digest)  # Another process has evicted it.
            yield None
            return
        with lock:
            if digest in self._verified or _matches(folder, digest):
                self._verified.add(digest)
                os.utime(folder)
                yield folder
                return
            _logger.warning("adapter %s was damaged on disk: it is not used", digest)
            with locked(self._accounts):
                if lock.is_of(folder):  # Another process that found it damaged may have brought it anew.
                    # Although others may use it: what they read is not what they want.
                    self._member.throw_away(folder)
        self._member.empty_trash()
        yield None

    def distrust(self, digest: str) -> None:
        """Hash an adapter's files again at the next `find`."""
        self._verified.discard(digest)

    def flight(self, digest: str, limit_s: float) -> AbstractContextManager[bool]:
        """The turn to download a digest, after whatever process is at it; False if that takes longer than the limit."""
        return turn(self._flights / self._folder(digest).name, limit_s)

    @contextmanager
    def staging(self, num_bytes: int) -> Iterator[Path]:
        """A folder to download into, with `num_bytes` of the budget set aside for it.

        Raises:
            NoRoom: it is more than the budget, or than what downloads and readers leave of it.
        """
        with locked(self._accounts):
            self._make_room(num_bytes)
            folder = self._member.reserve(num_bytes)
            self._under_way.add(folder)
        self._member.empty_trash()
        try:
            yield folder
        finally:
            with locked(self._accounts):
                self._under_way.discard(folder)
                with suppress(FileNotFoundError):  # Gone already when it was admitted.
                    self._member.throw_away(folder)
            self._member.empty_trash()

    def admit(self, staged: Path, digest: str) -> Path:
        """Take over a staged folder whose files were found to have this digest."""
        folder = self._folder(digest)
        os.utime(staged)
        with locked(self._accounts):
            with suppress(FileNotFoundError):  # Of another process, which was not waited for.
                self._member.throw_away(folder)
            staged.rename(folder)
        self._member.empty_trash()
        self._verified.add(digest)
        return folder

    def save_documents(self, name: str, version: int, documents: Mapping[str, Any]) -> None:
        """Remember a version's manifest and report, for a start while S3 is away."""
        with self._member.scrap() as scrap:
            self._documents.save(name, version, documents, scrap)

    def load_documents(self, name: str, version: int) -> dict[str, Any] | None:
        """What `save_documents` remembered."""
        return self._documents.load(name, version)

    def check_integrity(self) -> None:
        """Assert what holds whatever other processes do, and whenever one of them ended."""
        with locked(self._accounts):
            claims, sizes = self._member.claims(), self._sizes()
            reserved = self._member.reserved_folders()
            assert reserved <= self._under_way, "room is set aside for a download that has ended"
            for folder in sizes:
                assert is_digest(_digest(folder)), f"{folder} is no adapter's"
                names = {path.name for path in folder.iterdir()}
                assert names == set(ADAPTER_FILES), f"{folder} is not a whole adapter: {names}"
        self._member.empty_trash()
        used = sum(sizes.values()) + claims.reserved
        assert used <= claims.budget, f"{used} bytes are used or set aside, the budget is {claims.budget}"

    def _folder(self, digest: str) -> Path:
        assert is_digest(digest), f"{digest!r} is not a digest"
        return self._adapters / digest.removeprefix("sha256:")

    def _sizes(self) -> dict[Path, int]:
        return {folder: _size(folder) for folder in self._adapters.iterdir()}

    def _make_room(self, num_bytes: int) -> None:
        """Evict what must leave, or nothing where that would not do. With the lock of the accounts."""
        claims, sizes = self._member.claims(), self._sizes()
        excess = sum(sizes.values()) + claims.reserved + num_bytes - claims.budget
        with ExitStack() as held:
            victims: list[Path] = []
            for folder in sorted(sizes, key=lambda folder: _worth(folder, claims)):
                if excess <= 0:
                    break
                lock = try_lock(folder)
                if lock is not None:  # Nobody uses it, nor begins to.
                    held.enter_context(lock)
                    victims.append(folder)
                    excess -= sizes[folder]
            if excess > 0:
                raise NoRoom(
                    f"the disk tier of {claims.budget} bytes has no room for {num_bytes} bytes beside the "
                    f"{claims.reserved} that are on their way and what is read: raise --disk-bytes, "
                    "of all pods that share its folder"
                )
            for folder in victims:
                self._verified.discard(_digest(folder))
                self._member.throw_away(folder)
                self._num_evictions += 1


def _digest(folder: Path) -> str:
    return f"sha256:{folder.name}"


def _worth(folder: Path, claims: Claims) -> tuple[bool, float]:
    return _digest(folder) in claims.wanted, folder.stat().st_mtime


def _matches(folder: Path, digest: str) -> bool:
    try:
        return adapter_digest(folder) == digest
    except FileNotFoundError:
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())

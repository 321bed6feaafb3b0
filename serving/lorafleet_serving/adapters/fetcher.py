"""Downloads, hashes and verifies versions, and keeps them in the disk tier."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorafleet_contract.digest import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from lorafleet_contract.manifest import ADAPTER_FOLDER, GATE_REPORT_FILE, MANIFEST_FILE
from lorafleet_contract.states import Tier
from lorafleet_serving.adapters.disk import DiskTier
from lorafleet_serving.adapters.merge_recipe import MergeRecipe
from lorafleet_serving.adapters.messages import (
    DiskChanged,
    Fetched,
    FetcherEvent,
    FetcherReady,
    FetchOrder,
    FetchResult,
    FetchUnchanged,
    HandFetched,
    HandOrder,
    KeepAdapters,
    Merged,
    MergeOrder,
    NotFetched,
    Order,
)
from lorafleet_serving.adapters.source import StoredObject, stamp
from lorafleet_serving.adapters.sources import Sources
from lorafleet_serving.adapters.tensor_header import read_header
from lorafleet_serving.adapters.verification import read_document, verify_by_hand, verify_documents, verify_files
from lorafleet_serving.config import FetcherConfig
from lorafleet_serving.exceptions import AdapterRefusal, AdapterTooLarge, FetchFailed, FilesGone, NoRoom

_logger = logging.getLogger(__name__)

_DOCUMENT_LIMIT = 1 << 20
"""Longest manifest, report or adapter config in bytes."""
_GONE = "its files have left the disk tier already: raise --disk-bytes"

Objects = Mapping[str, StoredObject]


class Fetcher:
    """Executes orders, each in a thread of the caller's choice, and posts what came of them."""

    def __init__(self, config: FetcherConfig, post: Callable[[FetcherEvent], None]) -> None:
        self._config = config
        self._post = post
        self._source = Sources(config)
        self._disk = DiskTier(config.cache_dir, config.disk_bytes)
        # One flight per digest: versions that share their bytes download them once.
        self._flights: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._told = self._disk.digests()
        post(FetcherReady(self._told, self._disk.usage()))

    def keep(self, command: KeepAdapters) -> None:
        """Evict these digests last."""
        self._disk.keep(command.digests)

    def distrust(self, digest: str) -> None:
        """Hash an adapter's files again before they are next used."""
        self._disk.distrust(digest)

    def execute(self, order: FetchOrder | HandOrder) -> None:
        """Run one order to its result."""
        self._answer(order, lambda: self._fetch_by_hand(order) if isinstance(order, HandOrder) else self._fetch(order))

    def take_at_hand(self, order: FetchOrder | HandOrder) -> bool:
        """Run one order if what it asks for is on disk and good; never waits for S3, nor for a download."""
        assert order.digest is not None, "only what was fetched once can be at hand"
        flight = self._flights[order.digest]
        if not flight.acquire(blocking=False):
            return False
        try:
            found = self._found_by_hand(order) if isinstance(order, HandOrder) else self._on_disk(order)
        except Exception as error:  # S3 may have better, and if not, the order that asks there tells what is wrong.
            _logger.warning("%s cannot be taken from disk: %r", order, error)
            return False
        finally:
            flight.release()
        if found is not None:
            self._post(found)
        return found is not None

    def merge(self, order: MergeOrder) -> None:
        """Merge adapters to the end, or post why not."""
        self._answer(order, lambda: self._merge(order))

    def _answer(self, order: Order, run: Callable[[], FetcherEvent]) -> None:
        try:
            result = run()
        except (AdapterRefusal, FetchFailed, NoRoom) as error:
            result = NotFetched(order.order_id, error)
        except OSError as error:
            place = self._config.cache_dir
            reason = f"the disk tier in {place} cannot be used ({error}): free disk space, or set --cache-dir"
            result = NotFetched(order.order_id, FetchFailed(reason))
        except Exception as error:
            _logger.exception("%s failed", order)
            result = NotFetched(order.order_id, FetchFailed(f"the fetcher failed: {error!r}"))
        self._post(result)

    def _merge(self, order: MergeOrder) -> Merged:
        folder = self._merged_folder(order.recipe)
        return Merged(order.order_id, str(folder), _num_elements(folder))

    def _merged_folder(self, recipe: MergeRecipe) -> Path:
        # Torch takes a second to load and much memory: only a pod that merges pays for it.
        import torch

        from lorafleet_serving.adapters.merge import merge_adapters

        torch.set_num_threads(1)  # The cores belong to the engine.
        with ExitStack() as used:
            folders = [used.enter_context(self._disk.use(member.digest)) for member in recipe.members]
            present = [folder for folder in folders if folder is not None]
            if len(present) < len(folders):
                raise FetchFailed("an adapter to be merged has left the disk tier: try again in a few seconds")
            # Merged tensors are fp32, whatever the members' are.
            num_bytes = 2 * sum((folder / WEIGHTS_FILE).stat().st_size for folder in present) + _DOCUMENT_LIMIT
            with self._disk.staging(num_bytes) as staged:
                merge_adapters(present, recipe, staged)
                digest = adapter_digest(staged)
                folder = self._disk.find(digest) or self._disk.admit(staged, digest)
        self._tell_disk()
        return folder

    def _fetch(self, order: FetchOrder) -> FetchResult:
        mark = ""
        try:
            try:
                objects = _relevant(self._source.list(order.address))
            except FetchFailed as error:
                with self._flights[order.digest]:
                    found = self._on_disk(order)
                if found is None:
                    raise
                _logger.warning("%s:%d comes from disk: %s", order.name, order.version, error)
                return found
            mark = stamp(objects)
            if mark == order.refused_stamp:
                return FetchUnchanged(order.order_id)
            return self._from_source(order, objects)
        except AdapterRefusal as error:
            error.stamp = mark
            raise

    def _fetch_by_hand(self, order: HandOrder) -> HandFetched:
        parts = self._adapter_parts(_in_adapter_folder(self._source.list(order.address)))
        with self._disk.staging(_num_bytes(parts)) as staged:
            self._download(parts, staged)
            digest = verify_by_hand(staged, order, max_rank=self._config.max_rank)
            with self._flights[digest]:
                folder = self._disk.find(digest) or self._disk.admit(staged, digest)
        self._tell_disk()
        return HandFetched(order.order_id, str(folder), _num_elements(folder), digest)

    def _found_by_hand(self, order: HandOrder) -> HandFetched | None:
        assert order.digest is not None, "only what was fetched once can be at hand"
        folder = self._disk.find(order.digest)
        if folder is None:
            return None
        return HandFetched(order.order_id, str(folder), _num_elements(folder), order.digest)

    def _from_source(self, order: FetchOrder, objects: Objects) -> Fetched:
        manifest = self._read(objects, MANIFEST_FILE)
        report = self._read(objects, GATE_REPORT_FILE)
        # Before the weights: what the gate failed is not worth a download.
        self._verify(order, manifest, report)
        with self._flights[order.digest]:
            download_s = self._have_adapter(order.digest, objects)
            self._disk.save_documents(order.name, order.version, {"manifest": manifest, "report": report})
            with self._disk.use(order.digest) as folder:
                if folder is None:
                    raise FilesGone(_GONE)
                source = Tier.DISK if download_s is None else urlsplit(order.address).scheme
                files = str(folder), _num_elements(folder)
                return Fetched(order.order_id, *files, manifest, stamp(objects), source, download_s or 0.0)

    def _on_disk(self, order: FetchOrder) -> Fetched | None:
        """What an earlier order left on disk, if it is whole; it is verified as strictly."""
        documents = self._disk.load_documents(order.name, order.version)
        with self._disk.use(order.digest) as folder:
            if documents is None or folder is None:
                return None
            self._verify(order, documents["manifest"], documents["report"])
            return Fetched(order.order_id, str(folder), _num_elements(folder), documents["manifest"], stamp="")

    def _have_adapter(self, digest: str, objects: Objects) -> float | None:
        """Have an adapter on disk; how long its download took, None where it was there."""
        limit_s, download_s = self._config.fetch_limit_s, None
        # Pods that share the folder download once for all.
        with self._disk.flight(digest, limit_s) as is_ours:
            if not is_ours:
                _logger.warning("another pod has been at adapter %s for %.0f s: it is not waited for", digest, limit_s)
            if self._disk.find(digest) is None:
                began = time.monotonic()
                self._bring(digest, self._adapter_parts(objects))
                download_s = time.monotonic() - began
        self._tell_disk()
        return download_s

    def _bring(self, digest: str, parts: Objects) -> None:
        with self._disk.staging(_num_bytes(parts)) as staged:
            self._download(parts, staged)
            verify_files(staged, digest)
            self._disk.admit(staged, digest)

    def _tell_disk(self) -> None:
        """Say what is on disk, where it is not what was said last: other pods that share the folder change it too."""
        digests = self._disk.digests()
        if digests != self._told:
            self._told = digests
            self._post(DiskChanged(digests, self._disk.usage()))

    def _adapter_parts(self, objects: Objects) -> Objects:
        limits = {CONFIG_FILE: _DOCUMENT_LIMIT, WEIGHTS_FILE: self._config.max_adapter_bytes}
        return {name: _require(objects, f"{ADAPTER_FOLDER}/{name}", limits[name]) for name in ADAPTER_FILES}

    def _download(self, parts: Objects, folder: Path) -> None:
        for name, part in parts.items():
            self._source.download(part, folder / name)

    def _verify(self, order: FetchOrder, manifest: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        key, max_rank = self._config.gate_key, self._config.max_rank
        assert key is not None, "orders come only with a registry, and a registry only with a key"
        verify_documents(order, manifest, report, gate_key=key, max_rank=max_rank)

    def _read(self, objects: Objects, path: str) -> dict[str, Any]:
        return read_document(self._source.read(_require(objects, path, _DOCUMENT_LIMIT)), path)


def _num_elements(folder: Path) -> int:
    try:
        return sum(tensor.num_elements for tensor in read_header(folder / WEIGHTS_FILE).values())
    except FileNotFoundError as error:  # Pods that share the folder may need its place at once.
        raise FilesGone(_GONE) from error


def _num_bytes(parts: Objects) -> int:
    return sum(part.size for part in parts.values())


def _in_adapter_folder(objects: Objects) -> Objects:
    """An adapter's objects as a version has them; one that nobody registered may lie there bare, as PEFT writes it."""
    if CONFIG_FILE not in objects:
        return objects
    return {f"{ADAPTER_FOLDER}/{name}": objects[name] for name in ADAPTER_FILES if name in objects}


def _relevant(objects: Objects) -> dict[str, StoredObject]:
    paths = (MANIFEST_FILE, GATE_REPORT_FILE, *(f"{ADAPTER_FOLDER}/{name}" for name in ADAPTER_FILES))
    return {path: objects[path] for path in paths if path in objects}


def _require(objects: Objects, path: str, limit: int) -> StoredObject:
    stored = objects.get(path)
    if stored is None:
        raise AdapterRefusal(f"{path} is missing among the version's artifacts: register the version again")
    if stored.size > limit:
        told = f"{path} has {stored.size} bytes, the limit is {limit}"
        if path.endswith(WEIGHTS_FILE):
            raise AdapterTooLarge(f"{told}: raise --max-adapter-bytes")
        raise AdapterRefusal(told)
    return stored

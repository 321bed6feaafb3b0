"""Where adapters are read: by the scheme of an address, one source for each."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lorafleet_serving.adapters.local_source import LocalSource
from lorafleet_serving.adapters.mlflow_source import SCHEME, MLflowSource
from lorafleet_serving.adapters.source import S3Source, StoredObject
from lorafleet_serving.config import FetcherConfig


class Source(Protocol):
    """Objects at addresses of one kind. Safe to share between threads.

    Each method raises `AdapterRefusal` where an address must not be read, and `FetchFailed` where it cannot be now.
    """

    def list(self, address: str) -> dict[str, StoredObject]:
        """Objects under an address, by their path relative to it."""
        ...

    def read(self, stored: StoredObject) -> bytes:
        """The bytes of a small object."""
        ...

    def download(self, stored: StoredObject, target: Path) -> None:
        """Write an object to a file."""
        ...


class Sources:
    """Reads from every source that a pod may read from, each by its addresses."""

    def __init__(self, config: FetcherConfig) -> None:
        limit_s = config.fetch_limit_s
        self._mlflow = MLflowSource(config.registry, limit_s=limit_s)
        self._local = LocalSource(config.local_roots, limit_s=limit_s)
        self._s3 = S3Source(config.s3_endpoint, config.fetch_concurrency, config.s3_buckets, limit_s=limit_s)

    def list(self, address: str) -> dict[str, StoredObject]:
        """See `Source`."""
        if address.startswith(("file:", "/")):
            return self._local.list(address)
        return self._mlflow.list(address) if address.startswith(f"{SCHEME}:") else self._s3.list(address)

    def read(self, stored: StoredObject) -> bytes:
        """See `Source`."""
        return self._of(stored).read(stored)

    def download(self, stored: StoredObject, target: Path) -> None:
        """See `Source`."""
        self._of(stored).download(stored, target)

    def _of(self, stored: StoredObject) -> Source:
        match stored.scheme:
            case "file":
                return self._local
            case "mlflow-artifacts":
                return self._mlflow
            case _:
                return self._s3

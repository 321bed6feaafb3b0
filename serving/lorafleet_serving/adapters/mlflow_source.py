"""Reads artifacts through the MLflow server that is the pod's registry, where that serves them itself.

Only ever through that server: an address may name no other, and an answer that leads elsewhere is not followed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from lorafleet_contract.registry import RegistryEndpoint
from lorafleet_serving.adapters.source import StoredObject
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed

SCHEME = "mlflow-artifacts"
_ROUTE = "/api/2.0/mlflow-artifacts/artifacts"
_CHUNK_BYTES = 1 << 20
_CONNECT_LIMIT_S = 3.0
_READ_LIMIT_S = 20.0
_MAX_ENTRIES = 1000
"""Of one address; an adapter has a dozen."""


class MLflowSource:
    """Reads what is below MLflow's root of artifacts. Safe to share between threads, as httpx's clients are."""

    def __init__(self, endpoint: RegistryEndpoint | None, *, limit_s: float) -> None:
        """`limit_s` is the longest time that one file may take; without an `endpoint` nothing is read."""
        self._endpoint = endpoint
        self._limit_s = limit_s
        headers = {} if endpoint is None else endpoint.headers
        limits = httpx.Timeout(_READ_LIMIT_S, connect=_CONNECT_LIMIT_S)
        self._http = httpx.Client(headers=headers, timeout=limits, trust_env=False, follow_redirects=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def list(self, address: str) -> dict[str, StoredObject]:
        """Files of a folder and of those right below it, by their path relative to it.

        Raises:
            AdapterRefusal: the address is none of this server's, or holds too much.
            FetchFailed: the server does not answer, or refuses.
        """
        root = self._path(address)
        found: dict[str, StoredObject] = {}
        for path, size in self._files(root):
            if len(found) == _MAX_ENTRIES:
                raise AdapterRefusal(f"{address!r} holds more than {_MAX_ENTRIES} files: name an adapter's folder")
            # The server tells no mark that changes with the bytes; what is read is hashed all the same.
            found[path] = StoredObject(SCHEME, f"{root}/{path}", "", size, SCHEME)
        return found

    def read(self, stored: StoredObject) -> bytes:
        """The bytes of a small file.

        Raises:
            FetchFailed: the server does not give it, or not as it listed it.
        """
        return b"".join(self._chunks(stored))

    def download(self, stored: StoredObject, target: Path) -> None:
        """Write a file to another.

        Raises:
            FetchFailed: the server does not give it, or too slowly, or not as it listed it; or the disk is full.
        """
        try:
            with target.open("wb") as file:
                for chunk in self._chunks(stored):
                    file.write(chunk)
        except OSError as error:
            raise FetchFailed(f"cannot write {target}: {error}; free disk space or move the cache folder") from error

    def _files(self, root: str) -> Iterator[tuple[str, int]]:
        for entry in self._entries(root):
            if not entry.get("is_dir"):
                yield _name(entry), _size(entry)
                continue
            folder = _name(entry)
            below = self._entries(f"{root}/{folder}")
            yield from ((f"{folder}/{_name(item)}", _size(item)) for item in below if not item.get("is_dir"))

    def _entries(self, path: str) -> Sequence[dict[str, Any]]:
        with self._answer("", {"path": path}) as answer:
            try:
                answer.read()
                files = answer.json().get("files", [])
            except (ValueError, AttributeError) as error:
                raise FetchFailed(f"MLflow's list of {path} is not what it should be: {error}") from error
        if not isinstance(files, list) or not all(isinstance(item, dict) for item in files):
            raise FetchFailed(f"MLflow's list of {path} is not what it should be: {str(files)[:100]}")
        return files

    def _chunks(self, stored: StoredObject) -> Iterator[bytes]:
        """A file's bytes, exactly as many as were listed."""
        deadline = time.monotonic() + self._limit_s
        num_bytes = 0
        with self._answer(f"/{quote(stored.key)}", {}) as answer:
            for chunk in answer.iter_bytes(_CHUNK_BYTES):
                num_bytes += len(chunk)
                if num_bytes > stored.size:
                    raise FetchFailed(f"{stored.key} has more than its {stored.size} bytes: it is looked at again")
                if time.monotonic() > deadline:
                    raise FetchFailed(
                        f"{stored.key} has {stored.size} bytes, {num_bytes} came within {self._limit_s:.0f} s: "
                        "see to the network, or raise --fetch-limit"
                    )
                yield chunk
        if num_bytes < stored.size:
            raise FetchFailed(f"{stored.key} has {stored.size} bytes, {num_bytes} came: it is looked at again")

    @contextmanager
    def _answer(self, path: str, query: dict[str, str]) -> Iterator[httpx.Response]:
        assert self._endpoint is not None, "an address was taken without a registry"
        url = f"{self._endpoint.url.rstrip('/')}{_ROUTE}{path}"
        try:
            with self._http.stream("GET", url, params=query) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise FetchFailed(f"MLflow answered {answer.status_code} for {path or query['path']}: {_HINT}")
                yield answer
        except httpx.HTTPError as error:
            raise FetchFailed(f"cannot read {path or query['path']} from MLflow: {error!r}") from error

    def _path(self, address: str) -> str:
        parts = urlsplit(address)  # Without what is not printable, which it leaves out.
        if self._endpoint is None or parts.netloc not in ("", urlsplit(self._endpoint.url).netloc):
            raise AdapterRefusal(f"artifacts are at {address!r}, and this pod reads through its own MLflow alone")
        path = parts.path.strip("/")
        if not path or not address.isprintable() or ".." in PurePosixPath(path).parts or parts.query or parts.fragment:
            raise AdapterRefusal(f"artifacts are at {address!r}, which is no path of MLflow's artifacts")
        return path


_HINT = "it serves artifacts where it runs with --serve-artifacts, to those who may read them"


def _name(entry: dict[str, Any]) -> str:
    name = entry.get("path")
    if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
        raise FetchFailed(f"MLflow lists {str(name)[:100]!r}, which is no file's name")
    return name


def _size(entry: dict[str, Any]) -> int:
    size = str(entry.get("file_size", "0"))  # As JSON has numbers of 64 bits.
    if not size.isdecimal():
        raise FetchFailed(f"MLflow lists {entry.get('path')!r} with {size[:100]!r} bytes")
    return int(size)

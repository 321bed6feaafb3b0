"""Objects of a real S3, read through connections that break."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lorafleet_serving.adapters.source import S3Source, StoredObject
from lorafleet_serving.exceptions import FetchFailed
from tests.services import RunningS3

BUCKET = "mlflow"
CONTENT = os.urandom(3 << 20)


class BreakingProxy:
    """Passes bytes on to a server, and breaks each connection off after so many of its answer's."""

    def __init__(self, target: str, num_bytes: list[int]) -> None:
        """`num_bytes` are those of one connection after the other; later ones are whole."""
        self._target = urlsplit(target)
        self._num_bytes = num_bytes
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.num_connections = 0
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        for end in (self._server, *self._open):
            with suppress(OSError):  # Those that broke off are closed.
                end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def _run(self) -> None:
        threads = []
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                break
            self.num_connections += 1
            left = self._num_bytes.pop(0) if self._num_bytes else None
            upstream = socket.create_connection((self._target.hostname or "", self._target.port or 80))
            self._open += [caller, upstream]
            threads += [
                threading.Thread(target=_pass_on, args=(caller, upstream, None)),
                threading.Thread(target=_pass_on, args=(upstream, caller, left)),
            ]
            for thread in threads[-2:]:
                thread.start()
        for thread in threads:
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket, left: int | None) -> None:
    with suppress(OSError):
        while left is None or left > 0:
            data = source.recv(65536 if left is None else min(left, 65536))
            if not data:
                break
            target.sendall(data)
            left = None if left is None else left - len(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@pytest.fixture(scope="module")
def stored(s3: RunningS3) -> StoredObject:
    answer = s3.client().put_object(Bucket=BUCKET, Key="source/whole", Body=CONTENT)
    return StoredObject(BUCKET, "source/whole", answer["ETag"], len(CONTENT))


@contextmanager
def source_through(
    s3: RunningS3, monkeypatch: pytest.MonkeyPatch, *num_bytes: int, limit_s: float = 60.0
) -> Iterator[tuple[S3Source, BreakingProxy]]:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    proxy = BreakingProxy(s3.endpoint, list(num_bytes))
    try:
        yield S3Source(proxy.url, 1, limit_s=limit_s), proxy
    finally:
        proxy.stop()


def test_what_breaks_off_is_gone_on_with_where_it_broke(
    s3: RunningS3, stored: StoredObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with source_through(s3, monkeypatch, 1 << 20, 200_000, 1 << 20, 300_000, 70_000) as (source, proxy):
        source.download(stored, tmp_path / "file")
        assert proxy.num_connections == 6
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_source_that_gives_nothing_is_given_up(
    s3: RunningS3, stored: StoredObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        source_through(s3, monkeypatch, *[100] * 20) as (source, _),
        pytest.raises(FetchFailed, match="source/whole"),
    ):
        source.download(stored, tmp_path / "file")


def test_an_object_that_is_exchanged_meanwhile_is_not_taken(
    s3: RunningS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = s3.client()
    first = client.put_object(Bucket=BUCKET, Key="source/exchanged", Body=CONTENT)
    client.put_object(Bucket=BUCKET, Key="source/exchanged", Body=CONTENT[::-1])
    listed = StoredObject(BUCKET, "source/exchanged", first["ETag"], len(CONTENT))
    with (
        source_through(s3, monkeypatch) as (source, _),
        pytest.raises(FetchFailed, match="Precondition"),
    ):
        source.download(listed, tmp_path / "file")


def test_what_takes_too_long_is_given_up_with_the_remedy(
    s3: RunningS3, stored: StoredObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        source_through(s3, monkeypatch, limit_s=0.0) as (source, _),
        pytest.raises(FetchFailed, match="--fetch-limit"),
    ):
        source.download(stored, tmp_path / "file")

"""Objects of a real S3, read through connections that break."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorafleet_serving.adapters.source import S3Source, StoredObject
from lorafleet_serving.exceptions import FetchFailed
from tests.services import RunningS3
from tests.serving.network_proxy import NetworkProxy

BUCKET = "mlflow"
CONTENT = os.urandom(3 << 20)


@pytest.fixture(scope="module")
def stored(s3: RunningS3) -> StoredObject:
    answer = s3.client().put_object(Bucket=BUCKET, Key="source/whole", Body=CONTENT)
    return StoredObject(BUCKET, "source/whole", answer["ETag"], len(CONTENT))


@contextmanager
def source_through(
    s3: RunningS3, monkeypatch: pytest.MonkeyPatch, *num_bytes: int, limit_s: float = 60.0
) -> Iterator[tuple[S3Source, NetworkProxy]]:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    with NetworkProxy(s3.endpoint, *num_bytes) as proxy:
        yield S3Source(proxy.url, 1, limit_s=limit_s), proxy


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


@pytest.mark.parametrize("num_bytes", [60, 150, 250])
def test_an_answer_that_is_cut_off_in_its_headers_is_no_answer(
    s3: RunningS3, stored: StoredObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    with source_through(s3, monkeypatch, *[num_bytes] * 100) as (source, _):
        with pytest.raises(FetchFailed):
            source.list(f"s3://{BUCKET}/source")
        with pytest.raises(FetchFailed):
            source.read(stored)
        with pytest.raises(FetchFailed):
            source.download(stored, tmp_path / "file")

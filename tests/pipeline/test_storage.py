from __future__ import annotations

import errno
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from lorafleet_pipeline.exceptions import ObjectMissing, StorageDenied, StorageError, StorageUnreachable
from lorafleet_pipeline.settings import S3Settings
from lorafleet_pipeline.storage import Storage, split_s3
from tests.http_server import Server, running
from tests.services import RunningS3

SECRET = "geheimnis-4711"


@pytest.fixture
def storage(s3: RunningS3) -> Storage:
    return Storage(S3Settings(endpoint=s3.endpoint, access_key_id=s3.access_key, secret_access_key=s3.secret_key))


@pytest.fixture(params=["s3", "local"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder address of either kind."""
    return f"s3://datasets/storage-{tmp_path.name}" if request.param == "s3" else str(tmp_path / "files")


def test_what_is_written_is_read_listed_and_downloaded(storage: Storage, root: str, tmp_path: Path) -> None:
    storage.write_bytes(f"{root}/b/two.txt", b"old")
    storage.write_bytes(f"{root}/b/two.txt", b"two")
    storage.write_bytes(f"{root}/one.txt", b"one")
    assert storage.read_bytes(f"{root}/b/two.txt") == b"two"
    assert storage.list(root) == [f"{root}/b/two.txt", f"{root}/one.txt"]
    assert storage.list(f"{root}/b/") == [f"{root}/b/two.txt"]
    storage.download(f"{root}/one.txt", tmp_path / "down" / "one.txt")
    assert (tmp_path / "down" / "one.txt").read_bytes() == b"one"


def test_folder_of_a_longer_name_is_not_listed(storage: Storage, root: str) -> None:
    storage.write_bytes(f"{root}/run/a", b"")
    storage.write_bytes(f"{root}/run-2/a", b"")
    assert storage.list(f"{root}/run") == [f"{root}/run/a"]
    assert storage.list(f"{root}/nothing") == []


def test_folder_is_uploaded_with_its_structure(storage: Storage, root: str, tmp_path: Path) -> None:
    (tmp_path / "site" / "deep").mkdir(parents=True)
    (tmp_path / "site" / "index.html").write_text("<p>")
    (tmp_path / "site" / "deep" / "x.css").write_text("p {}")
    storage.upload_folder(tmp_path / "site", root)
    assert storage.list(root) == [f"{root}/deep/x.css", f"{root}/index.html"]


def test_upload_says_what_kind_of_file_it_is(storage: Storage, tmp_path: Path) -> None:
    for name, kind in (("a.html", "text/html"), ("a.json", "application/json"), ("a.zzz", "application/octet-stream")):
        (tmp_path / name).write_bytes(b"x")
        storage.upload(tmp_path / name, f"s3://datasets/kinds/{name}")
        assert storage.client.head_object(Bucket="datasets", Key=f"kinds/{name}")["ContentType"] == kind


def test_missing_file_is_named_and_leaves_nothing(storage: Storage, root: str, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissing, match="nothing does not exist: check"):
        storage.read_bytes(f"{root}/nothing")
    with pytest.raises(ObjectMissing):
        storage.download(f"{root}/nothing", tmp_path / "down" / "nothing")
    assert list((tmp_path / "down").iterdir()) == []


def test_missing_bucket_is_named_and_can_be_made(storage: Storage, tmp_path: Path) -> None:
    address = f"s3://{tmp_path.name.replace('_', '-')}/x"
    with pytest.raises(ObjectMissing, match=address):
        storage.read_bytes(address)
    for _ in range(2):
        storage.ensure_bucket(address)
    storage.write_bytes(address, b"x")
    assert storage.read_bytes(address) == b"x"


@pytest.mark.parametrize(("access_key", "secret_key"), [(None, SECRET), ("nobody", SECRET)])
def test_wrong_credentials_are_told_and_not_shown(
    s3: RunningS3, tmp_path: Path, access_key: str | None, secret_key: str
) -> None:
    keys = S3Settings(endpoint=s3.endpoint, access_key_id=access_key or s3.access_key, secret_access_key=secret_key)
    stranger = Storage(keys)
    (tmp_path / "file").write_bytes(b"x")
    for act in (
        lambda: stranger.read_bytes("s3://datasets/x"),
        lambda: stranger.write_bytes("s3://datasets/x", b""),
        lambda: stranger.upload(tmp_path / "file", "s3://datasets/x"),
        lambda: stranger.download("s3://datasets/x", tmp_path / "down"),
        lambda: stranger.list("s3://datasets/x"),
    ):
        with pytest.raises(StorageDenied, match="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
            act()
        assert SECRET not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert SECRET not in repr(keys)


def test_token_of_temporary_credentials_goes_with_every_request() -> None:
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers.get("X-Amz-Security-Token"))
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    server = Server(("127.0.0.1", 0), Handler)
    with running(server):
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        for token in ("temporary", None):
            assert Storage(S3Settings(endpoint, "key", SECRET, session_token=token)).read_bytes("s3://bucket/x") == b"x"
    assert tokens == ["temporary", None]


def test_absent_credentials_are_told(s3: RunningS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageDenied, match="needs credentials: set AWS_ACCESS_KEY_ID"):
        Storage(S3Settings(endpoint=s3.endpoint)).read_bytes("s3://datasets/x")


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [("http://127.0.0.1:9", "cannot be reached .*LORAFLEET_S3_ENDPOINT"), ("nonsense", "'nonsense' is no endpoint")],
)
def test_unreachable_endpoint_is_named(endpoint: str, says: str) -> None:
    with pytest.raises(StorageUnreachable, match=says):
        Storage(S3Settings(endpoint=endpoint, access_key_id="a", secret_access_key="b")).read_bytes("s3://bucket/x")


@pytest.mark.parametrize("address", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key"])
def test_address_without_bucket_or_key_is_refused(address: str) -> None:
    with pytest.raises(StorageError, match="write s3://bucket/key"):
        split_s3(address)


def test_malformed_bucket_is_refused(storage: Storage) -> None:
    with pytest.raises(StorageError, match="is no valid S3 address"):
        storage.read_bytes("s3://No Bucket!/x")


def test_write_that_breaks_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = Storage(S3Settings())
    local.write_bytes(str(tmp_path / "x"), b"old")

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"failed \(No space left on device\): free some space"):
        local.write_bytes(str(tmp_path / "x"), b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_path_below_a_file_is_an_error_of_the_platform(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="check the path"):
        Storage(S3Settings()).write_bytes(str(tmp_path / "file" / "below"), b"")

"""Adapters in folders of the pod's machine, and what somebody may put there to lead out of them."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from lorafleet_serving.adapters.local_source import LocalSource
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed

WEIGHTS = os.urandom(3 << 20)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_text("secret")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "my adapter"
    (folder / "adapter").mkdir(parents=True)
    (folder / "config").write_text("{}")
    (folder / "adapter" / "weights").write_bytes(WEIGHTS)
    return tmp_path / "root"


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "my adapter"


@pytest.fixture
def source(root: Path) -> LocalSource:
    return LocalSource([root], limit_s=60.0)


@pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://{quoted}"])
def test_files_are_read_by_path_and_by_address(source: LocalSource, folder: Path, tmp_path: Path, form: str) -> None:
    found = source.list(form.format(path=folder, quoted=quote(str(folder))))
    assert set(found) == {"config", "adapter/weights"}
    assert source.read(found["config"]) == b"{}"
    source.download(found["adapter/weights"], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "form",
    [
        "{outside}", "file://{outside}", "{root}/../outside", "file://{root}/%2e%2e/outside", "{root}x", "/", "/etc",
        "file:///", "file://host/x", "//etc", "/proc/self/root/etc", "relative", "{root}/\0", "~/x", "",
    ],
)  # fmt: skip
def test_addresses_outside_of_the_roots_are_refused(source: LocalSource, root: Path, secret: Path, form: str) -> None:
    with pytest.raises(AdapterRefusal):
        source.list(form.format(root=root, outside=secret.parent))


def test_without_roots_nothing_is_read(folder: Path) -> None:
    with pytest.raises(AdapterRefusal, match="--local-roots"):
        LocalSource([], limit_s=60.0).list(str(folder))


def test_links_lead_out_of_no_root(source: LocalSource, root: Path, folder: Path, secret: Path) -> None:
    (root / "folder-link").symlink_to(secret.parent)
    with pytest.raises(AdapterRefusal, match="local roots"):
        source.list(str(root / "folder-link"))
    (folder / "file-link").symlink_to(secret)
    (folder / "inner-link").symlink_to(secret.parent)
    (folder / "loop").symlink_to(folder / "loop")
    assert set(source.list(str(folder))) == {"config", "adapter/weights"}


def test_links_within_a_root_are_followed(source: LocalSource, folder: Path) -> None:
    (folder / "link").symlink_to(folder / "adapter" / "weights")
    assert source.read(source.list(str(folder))["link"]) == WEIGHTS


def test_a_link_that_takes_a_files_place_is_not_followed(
    source: LocalSource, folder: Path, secret: Path, tmp_path: Path
) -> None:
    found = source.list(str(folder))
    (folder / "config").unlink()
    (folder / "config").symlink_to(secret)
    with pytest.raises(FetchFailed):
        source.read(found["config"])
    (folder / "adapter").rename(folder / "before")
    (folder / "adapter").symlink_to(folder / "before")
    with pytest.raises(FetchFailed):
        source.download(found["adapter/weights"], tmp_path / "copy")


def test_a_file_that_changes_is_not_read_as_what_it_was(source: LocalSource, folder: Path, tmp_path: Path) -> None:
    found = source.list(str(folder))
    (folder / "adapter" / "weights").write_bytes(WEIGHTS[:-1])
    with pytest.raises(FetchFailed, match="changed"):
        source.download(found["adapter/weights"], tmp_path / "copy")


def test_what_is_no_regular_file_is_never_waited_for(source: LocalSource, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    found = source.list(str(folder))
    assert "fifo" not in found
    (folder / "config").unlink()
    os.mkfifo(folder / "config")
    with pytest.raises(FetchFailed):
        source.read(found["config"])


def test_a_folder_of_very_many_files_is_refused(source: LocalSource, folder: Path) -> None:
    for number in range(1001):
        (folder / str(number)).touch()
    with pytest.raises(AdapterRefusal, match="1000"):
        source.list(str(folder))


def test_what_is_not_there_may_come(source: LocalSource, root: Path) -> None:
    with pytest.raises(FetchFailed):
        source.list(str(root / "nothing"))

"""The home folder: made for its owner, and never out of someone else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.home_lock import HomeLock


def test_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = StackHome(tmp_path / "a home")
    home.create()
    home.create()
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700


def test_home_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StackError, match=r"cannot be made \(.*\): choose another with `--home`"):
            StackHome(folder).create()


def test_folder_with_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StackError, match="holds other files and no stack: choose an empty or new folder"):
        StackHome(tmp_path).create()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["work", "pod-8000"])
def test_folder_that_a_step_or_a_pod_has_used_becomes_a_home(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    StackHome(tmp_path).create()


def test_lock_tells_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    ours, theirs = HomeLock(tmp_path / "lock"), HomeLock(tmp_path / "lock")
    assert theirs.holder is None
    assert ours.take()
    assert theirs.holder == os.getpid()
    assert not theirs.take()
    with pytest.raises(StackError, match="no entry"), theirs.held("no entry"):
        pass
    ours.release()
    assert theirs.holder is None
    with theirs.held("no entry"):
        assert not ours.take()
    assert ours.take()
    ours.release()


def test_lock_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"lock cannot be written \(No such file or directory\): mend"):
        HomeLock(tmp_path / "absent" / "lock").take()

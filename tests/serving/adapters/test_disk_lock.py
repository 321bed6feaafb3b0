"""Locks of the disk tier: held by one, lost with the process, and never left on what is gone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lorafleet_serving.adapters.disk_lock import lock_own_folder, locked, share, try_lock, turn
from lorafleet_serving.exceptions import InvalidSetting


def test_a_folder_belongs_to_one_pod_at_a_time(tmp_path: Path) -> None:
    with lock_own_folder(tmp_path / "pod"), pytest.raises(InvalidSetting, match="--pod-id"):
        lock_own_folder(tmp_path / "pod")
    lock_own_folder(tmp_path / "pod").close()


def test_a_folder_that_cannot_be_made_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="--cache-dir"):
        lock_own_folder(tmp_path / "file" / "pod")


def test_readers_share_and_keep_others_from_having_it_alone(tmp_path: Path) -> None:
    first, second = share(tmp_path), share(tmp_path)
    assert first is not None
    assert second is not None
    first.close()
    assert try_lock(tmp_path) is None
    second.close()
    alone = try_lock(tmp_path)
    assert alone is not None
    alone.close()


def test_who_waited_for_what_was_moved_away_meanwhile_has_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    alone = try_lock(folder)
    assert alone is not None
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(share(folder)))
    with alone:
        waiting.start()
        folder.rename(tmp_path / "trash")
    waiting.join()
    assert found == [None]
    assert share(folder) is None
    assert try_lock(folder) is None


def test_a_turn_that_does_not_come_in_time_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "turn"
    with turn(path, 0.0) as first:
        assert first
        with turn(path, 0.0) as second:
            assert not second
        assert path.exists(), "who had no turn ended another's"
    assert not path.exists()
    with turn(path, 0.0) as third:
        assert third


@pytest.mark.parametrize("is_kept", [True, False])
def test_one_at_a_time_whether_the_file_is_kept_or_goes(tmp_path: Path, is_kept: bool) -> None:
    path, inside, most = tmp_path / "file", 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(path) if is_kept else turn(path, 60.0):
                inside += 1
                assert path.exists()  # It lets other threads run, too.
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1

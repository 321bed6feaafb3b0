"""The disk tier: whole adapters only, within the budget, evicting what is wanted last."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from pathlib import Path

import pytest

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from lorafleet_serving.adapters.disk import DiskTier
from lorafleet_serving.adapters.disk_lock import locked
from lorafleet_serving.exceptions import NoRoom

SIZE = 1000


def _put(tier: DiskTier, seed: int) -> str:
    with tier.staging(SIZE) as staged:
        (staged / CONFIG_FILE).write_bytes(b"{}")
        (staged / WEIGHTS_FILE).write_bytes(bytes([seed]) * (SIZE - 2))
        digest = adapter_digest(staged)
        folder = tier.admit(staged, digest)
    os.utime(folder, (seed, seed))  # The order of use, whatever the clock's resolution.
    return digest


def test_the_least_recently_used_goes_first_and_what_is_wanted_stays(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 3 * SIZE)
    first, second, third = (_put(tier, seed) for seed in (1, 2, 3))
    tier.keep(frozenset({first}))
    fourth = _put(tier, 4)
    assert tier.digests() == {first, third, fourth}
    assert tier.find(second) is None


def test_where_all_is_wanted_the_least_recently_used_goes(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2 * SIZE)
    first, second = (_put(tier, seed) for seed in (1, 2))
    tier.keep(frozenset({first, second}))
    third = _put(tier, 3)
    assert tier.digests() == {second, third}


def test_what_is_larger_than_the_budget_evicts_nothing(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2 * SIZE)
    held = {_put(tier, seed) for seed in (1, 2)}
    with pytest.raises(NoRoom, match="--disk-bytes"), tier.staging(2 * SIZE + 1):
        pass
    assert tier.digests() == held


def test_space_set_aside_for_one_download_is_not_given_to_another(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2 * SIZE)
    with tier.staging(SIZE + 1), pytest.raises(NoRoom), tier.staging(SIZE):
        pass
    with tier.staging(2 * SIZE):
        pass


def test_an_adapter_damaged_while_the_pod_was_down_is_not_found(tmp_path: Path) -> None:
    digest = _put(DiskTier(tmp_path, 10 * SIZE), 1)
    restarted = DiskTier(tmp_path, 10 * SIZE)
    folder = restarted.find(digest)
    assert folder is not None
    (folder / WEIGHTS_FILE).write_bytes(b"short")
    again = DiskTier(tmp_path, 10 * SIZE)
    assert again.find(digest) is None
    assert again.digests() == frozenset()


def test_what_is_distrusted_is_hashed_again(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 10 * SIZE)
    digest = _put(tier, 1)
    folder = tier.find(digest)
    assert folder is not None
    (folder / WEIGHTS_FILE).write_bytes(b"short")
    assert tier.find(digest) == folder, "it is hashed at each use"
    tier.distrust(digest)
    assert tier.find(digest) is None


def test_scraps_of_a_broken_download_are_gone_after_a_start(tmp_path: Path) -> None:
    scrap = tmp_path / "staging" / "half"
    scrap.mkdir(parents=True)
    tier = DiskTier(tmp_path, SIZE)
    assert not scrap.exists()
    assert tier.digests() == frozenset()


def test_documents_damaged_while_the_pod_was_down_are_not_used(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, SIZE)
    documents = {"manifest": {"rank": 4}, "report": {}}
    tier.save_documents("tickets", 1, documents)
    assert tier.load_documents("tickets", 1) == documents
    for text in ('{"manifest": {"ra', "{}", "[]", "null", '{"manifest": 1, "report": 2}'):
        (tmp_path / "versions" / "tickets" / "1.json").write_text(text)
        assert tier.load_documents("tickets", 1) is None


def test_what_is_used_stays_and_what_would_not_do_evicts_nothing(tmp_path: Path) -> None:
    tier, other = DiskTier(tmp_path, 2 * SIZE), DiskTier(tmp_path, 2 * SIZE)
    first, second = (_put(tier, seed) for seed in (1, 2))
    with tier.use(first) as folder:
        assert folder is not None
        third = _put(other, 3)
        assert other.digests() == {first, third}, "the older one was in use"
        with pytest.raises(NoRoom, match="--disk-bytes"), other.staging(2 * SIZE):
            pass
        assert other.digests() == {first, third}
    assert tier.find(second) is None
    with other.staging(2 * SIZE):
        assert other.digests() == frozenset()


def test_what_another_pod_wants_goes_last(tmp_path: Path) -> None:
    tier, other = DiskTier(tmp_path, 2 * SIZE), DiskTier(tmp_path, 2 * SIZE)
    first, second = (_put(tier, seed) for seed in (1, 2))
    other.keep(frozenset({first}))
    tier.keep(frozenset())
    third = _put(tier, 3)
    assert tier.digests() == {first, third}
    assert tier.find(second) is None


def test_space_set_aside_by_one_pod_is_not_given_to_another(tmp_path: Path) -> None:
    tier, other = DiskTier(tmp_path, 2 * SIZE), DiskTier(tmp_path, 2 * SIZE)
    with tier.staging(SIZE + 1):
        with pytest.raises(NoRoom), other.staging(SIZE):
            pass
        other.check_integrity()
    with other.staging(2 * SIZE):
        tier.check_integrity()


def test_the_smallest_budget_counts_for_all(tmp_path: Path) -> None:
    large = DiskTier(tmp_path, 3 * SIZE)
    first, second, third = (_put(large, seed) for seed in (1, 2, 3))
    small = DiskTier(tmp_path, 2 * SIZE)
    assert large.digests() == {second, third}, "one that joins with less makes it less at once"
    assert large.find(first) is None
    with pytest.raises(NoRoom, match=f"of {2 * SIZE} bytes"), large.staging(3 * SIZE):
        pass
    large.check_integrity()
    small.check_integrity()


def test_what_two_pods_admit_at_once_stands_once_and_whole(tmp_path: Path) -> None:
    tier, other = DiskTier(tmp_path, 3 * SIZE), DiskTier(tmp_path, 3 * SIZE)
    with tier.staging(SIZE) as staged:
        (staged / CONFIG_FILE).write_bytes(b"{}")
        (staged / WEIGHTS_FILE).write_bytes(bytes([7]) * (SIZE - 2))
        digest = _put(other, 7)
        folder = tier.admit(staged, digest)
    assert adapter_digest(folder) == digest
    assert tier.digests() == {digest}
    tier.check_integrity()


def test_a_start_leaves_the_downloads_of_a_living_pod_alone(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, 2 * SIZE)
    with tier.staging(SIZE) as staged:
        (staged / CONFIG_FILE).write_bytes(b"{}")
        DiskTier(tmp_path, 2 * SIZE)
        (staged / WEIGHTS_FILE).write_bytes(bytes(SIZE - 2))
        digest = adapter_digest(staged)
        assert tier.admit(staged, digest).is_dir()


def test_what_is_wanted_need_not_be_written_for_a_pod_to_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(tmp_path, 2 * SIZE)
    shutil.rmtree(tmp_path / "staging")
    tier.keep(frozenset({"sha256:any"}))
    assert "cannot be written" in caplog.text


def test_what_another_pod_has_mended_meanwhile_is_not_removed_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = _put(DiskTier(tmp_path, 10 * SIZE), 1)
    folder = tmp_path / "adapters" / digest.removeprefix("sha256:")
    (folder / WEIGHTS_FILE).write_bytes(b"short")
    tier, other = DiskTier(tmp_path, 10 * SIZE), DiskTier(tmp_path, 10 * SIZE)
    is_found_out = threading.Event()

    def notice(record: logging.LogRecord) -> bool:
        is_found_out.set()
        return True

    monkeypatch.setattr(logging.getLogger("lorafleet_serving.adapters.disk"), "filters", [notice])
    late = threading.Thread(target=tier.find, args=(digest,))
    with other.staging(SIZE) as staged:
        (staged / CONFIG_FILE).write_bytes(b"{}")
        (staged / WEIGHTS_FILE).write_bytes(bytes([1]) * (SIZE - 2))
        with locked(tmp_path / "accounts"):
            late.start()
            assert is_found_out.wait(10.0)
            folder.rename(staged.with_name("trash-damaged"))
            staged.rename(folder)
        late.join()
    assert other.find(digest) == folder
    assert tier.find(digest) == folder
    tier.check_integrity()


def test_a_folder_that_was_removed_under_a_pod_is_told_as_such(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    tier = DiskTier(root, SIZE)
    shutil.rmtree(root)
    with pytest.raises(FileNotFoundError, match="start it again"), tier.staging(SIZE):
        pass

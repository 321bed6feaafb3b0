from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lorafleet_serving.kernels.cpu import compile_cache
from lorafleet_serving.kernels.cpu.compile_cache import cache_folder

KERNELS = Path(compile_cache.__file__).parent.parent
CALL = """
import torch
from lorafleet_serving.kernels.cpu.kernels import CpuKernels
from lorafleet_serving.kernels.cpu.norm import rms_norm
CpuKernels(torch.float32).rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5)
print(sum(rms_norm.stats.cache_hits.values()))
"""


def num_cache_hits(cache_home: str, temporary: Path) -> int:
    environment = {**os.environ, "XDG_CACHE_HOME": cache_home, "HOME": cache_home, "TMPDIR": str(temporary)}
    result = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=True)
    return int(result.stdout)


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the temporary files are, of a user whose home cannot be written."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no-such-folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    assert [num_cache_hits(str(tmp_path), tmp_path) for _ in range(2)] == [0, 1]


def test_without_a_home_the_second_start_compiles_nothing_either(tmp_path: Path) -> None:
    assert [num_cache_hits("/proc/no-such-folder", tmp_path) for _ in range(2)] == [0, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / "lorafleet" / "compiled"
    assert cache_folder().stat().st_mode & 0o077 == 0


def test_without_a_home_there_is_one_folder_of_this_user_alone(homeless: Path) -> None:
    assert cache_folder() == cache_folder()
    assert cache_folder().parent == homeless / f"lorafleet-compiled-{os.getuid()}"
    assert [folder.stat().st_mode & 0o777 for folder in (cache_folder(), cache_folder().parent)] == [0o700] * 2


def test_another_state_of_any_source_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = tmp_path / "kernels"
    shutil.copytree(KERNELS, sources)
    before = cache_folder(sources)
    assert before == cache_folder(KERNELS)
    for name in ("cpu/lora_pairs.py", "lora_table.py"):
        with (sources / name).open("a") as file:
            file.write("# Another state.\n")
        assert cache_folder(sources) != before
        before = cache_folder(sources)


def test_a_folder_of_somebody_else_is_not_taken(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(homeless / "cache"))
    taken = cache_folder()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (homeless / "lorafleet-compiled-12345").mkdir(mode=0o700)
    assert_is_new(cache_folder(), taken.parent, homeless / "lorafleet-compiled-12345")


def test_it_is_told_why_the_user_s_own_cache_is_not_taken(
    homeless: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(homeless / "cache"))
    refused = cache_folder()
    assert not caplog.messages
    refused.chmod(0o777)
    assert cache_folder() != refused
    (told,) = caplog.messages
    assert f"{refused} is not a folder that user {os.getuid()} alone can write to: remove it" in told


def test_a_folder_that_others_can_write_to_is_not_taken(homeless: Path) -> None:
    open_to_all = cache_folder().parent
    open_to_all.chmod(0o777)
    assert_is_new(cache_folder(), open_to_all)


def test_a_link_in_the_place_of_the_folder_is_not_followed(homeless: Path) -> None:
    target = homeless / "elsewhere"
    target.mkdir(mode=0o700)
    (homeless / f"lorafleet-compiled-{os.getuid()}").symlink_to(target)
    assert_is_new(cache_folder(), target)
    assert not list(target.iterdir())


def assert_is_new(folder: Path, *taken: Path) -> None:
    """That it is empty, and lies in none of those."""
    assert folder.is_dir()
    assert not list(folder.iterdir())
    assert not {item.resolve() for item in taken} & {*folder.resolve().parents, folder.resolve()}

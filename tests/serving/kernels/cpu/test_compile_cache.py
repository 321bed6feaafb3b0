from __future__ import annotations

import os
import shutil
import subprocess
import sys
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


def num_cache_hits(cache_home: str) -> int:
    environment = {**os.environ, "XDG_CACHE_HOME": cache_home, "HOME": cache_home}
    result = subprocess.run([sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=True)
    return int(result.stdout)


def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    assert [num_cache_hits(str(tmp_path)) for _ in range(2)] == [0, 1]


def test_operators_run_where_no_cache_can_be_written() -> None:
    assert num_cache_hits("/proc/no-such-folder") == 0


def test_a_folder_is_made_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / "lorafleet" / "compiled"
    assert cache_folder().stat().st_mode & 0o077 == 0


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


def test_a_folder_of_somebody_else_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    other = cache_folder()
    assert tmp_path not in other.parents
    other.rmdir()

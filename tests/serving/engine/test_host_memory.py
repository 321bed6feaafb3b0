from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from lorafleet_serving.engine.host_memory import available_memory

GIB = 1 << 30


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n")
    return file


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_what_a_container_leaves_counts_where_it_is_less_than_the_machine_has(
    tmp_path: Path, meminfo: Path, limit: str, used: str
) -> None:
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / used).write_text(f"{GIB}\n")
    for told, expected in {"max": 8 * GIB, f"{4 * GIB}\n": 3 * GIB, str(1 << 62): 8 * GIB, str(GIB // 2): 0}.items():
        (tmp_path / limit).write_text(told)
        assert available_memory(meminfo, tmp_path) == expected


@pytest.mark.parametrize(
    ("limit", "used", "stat", "prefix"),
    [
        ("memory.max", "memory.current", "memory.stat", ""),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_"),
    ],
)
def test_cached_files_do_not_count_as_used(
    tmp_path: Path, meminfo: Path, limit: str, used: str, stat: str, prefix: str
) -> None:
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text(f"{4 * GIB}\n")
    (tmp_path / used).write_text(f"{4 * GIB}\n")
    held = {"anon": GIB, f"{prefix}active_file": GIB, f"{prefix}inactive_file": GIB // 2}
    (tmp_path / stat).write_text("".join(f"{name} {size}\n" for name, size in held.items()))
    assert available_memory(meminfo, tmp_path) == GIB + GIB // 2


def test_it_is_what_this_machine_has() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total

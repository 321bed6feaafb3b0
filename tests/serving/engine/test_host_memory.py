from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from lorafleet_serving.engine.host_memory import memory_limit


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_limit_of_a_container_counts_where_it_is_lower_than_the_machine(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    machine = psutil.virtual_memory().total
    for told, limit in {"max": machine, f"{1 << 30}\n": 1 << 30, str(1 << 62): machine}.items():
        file.write_text(told)
        assert memory_limit(tmp_path) == limit


def test_without_a_container_it_is_the_memory_of_the_machine(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) == psutil.virtual_memory().total

"""The wheel: every package is in it, and nothing else at top level."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.repository.sources import PACKAGES, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_our_packages_and_nothing_else_at_top_level(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    wanted = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names


def test_wheel_carries_the_dags_beside_the_provider(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    shipped = [path for path in (ROOT / "dags").rglob("*") if path.suffix in {".py", ".yaml"}]
    assert {f"lorafleet_airflow/dags/{path.relative_to(ROOT / 'dags').as_posix()}" for path in shipped} <= names


def test_entry_points_name_modules_that_exist(wheel: zipfile.ZipFile) -> None:
    (listing,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    lines = wheel.read(listing).decode().splitlines()
    modules = [line.partition("= ")[2].partition(":")[0] for line in lines if " = " in line]
    assert modules
    assert not [name for name in modules if name.replace(".", "/") + ".py" not in wheel.namelist()]


def test_no_weights_or_data_are_committed() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [Path(name) for name in listing.splitlines()]
    assert not [str(path) for path in files if path.suffix in {".safetensors", ".gguf", ".bin", ".jsonl", ".parquet"}]

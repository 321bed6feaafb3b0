"""`lorafleet up`, `status` and `down` as a user and as a program sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    _run("down", "--home", str(tmp_path / "home"))


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorafleet_cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _document(*arguments: str) -> Any:
    return json.loads(_run(*arguments, "--json").stdout)


def test_stack_is_brought_up_shown_and_stopped(home: Path) -> None:
    at_home = ("--home", str(home))
    up = _run("up", "--only", "s3", *at_home, "--json")
    assert up.returncode == 0, up.stderr
    # Progress goes to stderr, so that stdout is exactly one object.
    assert "s3: ready" in up.stderr
    urls = json.loads(up.stdout)["urls"]
    status = _document("status", *at_home)
    assert status["ready"]
    (component,) = status["components"]
    assert (component["name"], component["state"], component["url"]) == ("s3", "ready", urls["s3"])
    assert component["pid"] > 0
    assert Path(component["log"]).is_file()
    table = _run("status", *at_home)
    assert table.returncode == 0
    assert "ready" in table.stdout
    assert _document("down", *at_home)["stopped"]
    stopped = _run("status", *at_home)
    assert stopped.returncode == 1
    assert "stopped" in stopped.stdout


def test_malformed_port_is_an_error_with_an_example(home: Path) -> None:
    result = _run("up", "--home", str(home), "--port", "mlflow")
    assert result.returncode == 1
    assert result.stderr.strip() == "error: --port mlflow is not NAME=PORT: write for instance `--port mlflow=5001`"
    assert not home.exists()

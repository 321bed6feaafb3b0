"""`lorafleet up`, `status` and `down` as a user and as a program sees them."""

from __future__ import annotations

import json
import signal
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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--port", "web=80"), "no port is named 'web'"),
        (("--port", "s3=0"), "port 0 for s3 is not between 1 and 65535"),
        (("--only", ""), "unknown component"),
        (("--only", "s3", "--dags", "absent"), "absent does not exist: correct `--dags`"),
    ],
)
def test_bad_option_is_refused_before_anything_is_made(home: Path, arguments: tuple[str, ...], told: str) -> None:
    result = _run("up", "--home", str(home), *arguments)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert told in line
    assert not home.exists()


def test_interrupted_start_leaves_nothing_running(home: Path) -> None:
    command = [sys.executable, "-m", "lorafleet_cli.main", "up", "--only", "s3,mlflow", "--home", str(home)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        # MLflow takes seconds to start, S3 less: it is under way.
        while "mlflow: starting" not in up.stderr.readline():
            assert up.poll() is None
        up.terminate()
        up.communicate()
    assert up.returncode == 128 + signal.SIGTERM
    status = _document("status", "--home", str(home))
    assert not status["supervised"]
    assert {component["state"] for component in status["components"]} == {"stopped"}
    assert _document("down", "--home", str(home))["stopped"] is False

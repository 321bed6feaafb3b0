"""`lorafleet train` and `lorafleet evaluate` as a user and as a program sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.training.prepared_run import make_run, make_settings, make_spec, write_rows
from tests.serving.tiny_model import make_tiny_model


class _Shell:
    """Runs commands over one spec and home folder."""

    def __init__(self, folder: Path) -> None:
        write_rows(folder)
        gate = {"min_lift": -1.0}
        self.spec = make_spec(make_tiny_model(folder / "base"), folder, gate=gate, evaluation={"limit": 24})
        self.spec_file = folder / "spec.yaml"
        self.spec_file.write_text(self.spec.to_yaml())
        self._folder = folder

    def prepare(self) -> None:
        make_run(self.spec, make_settings(self._folder), f"local-{self.spec.spec_digest[7:19]}")

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LORAFLEET_")}
        environment |= {"LORAFLEET_HOME": str(self._folder), "LORAFLEET_GATE_KEY": "gate-key"}
        arguments = [sys.executable, "-m", "lorafleet_cli.main", command, str(self.spec_file), *options]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def shell(tmp_path: Path) -> _Shell:
    return _Shell(tmp_path)


def test_adapter_is_trained_and_evaluated_without_a_registry(shell: _Shell) -> None:
    shell.prepare()
    trained = shell.run("train", "--no-tracking", "--json")
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert (result["num_steps"], result["mlflow_run_id"], result["skipped_version"]) == (12, None, None)
    again = shell.run("train", "--no-tracking")
    assert "Adapter echo" in again.stdout
    evaluated = shell.run("evaluate", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    report = json.loads(evaluated.stdout)
    assert (report["digest"], report["rows"], report["status"]) == (result["adapter_digest"], 24, "passed")


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("train", (), "no registry is configured"),
        ("train", ("--no-tracking",), "validate the run's dataset first"),
        ("evaluate", (), "run `lorafleet train` for this run"),
    ],
)
def test_missing_preparations_are_one_line(
    shell: _Shell, command: str, options: tuple[str, ...], expected: str
) -> None:
    result = shell.run(command, *options)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert result.stdout == ""

"""The command line starts at once, shows every command, and answers errors in one line."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lorafleet_cli.main import COMMANDS


def _run(
    *arguments: str, code: str = "from lorafleet_cli.main import main; main()"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, atexit; from lorafleet_cli.main import main\n"
        "atexit.register(lambda: print('LOADED', *sorted(sys.modules)))\nmain()"
    )
    result = _run("--help", code=code)
    assert result.returncode == 0
    text, _, loaded = result.stdout.partition("LOADED")
    assert all(name in text for name in COMMANDS)
    heavy = {"torch", "transformers", "mlflow", "boto3", "airflow", "great_expectations", "pydantic", "httpx"}
    assert heavy.isdisjoint(loaded.split())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_of_the_table_has_its_module(name: str) -> None:
    assert importlib.util.find_spec(f"lorafleet_cli.{COMMANDS[name].module}") is not None


def test_unknown_command_is_an_error() -> None:
    result = _run("fly")
    assert result.returncode == 2
    assert "No such command 'fly'" in result.stderr


def test_errors_of_the_platform_are_one_line() -> None:
    result = _run("up", "--only", "postgres")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: unknown component postgres: choose among")
    assert result.stdout == ""


def test_version_is_printed() -> None:
    assert _run("--version").stdout.strip() == "0.1.0"


def test_file_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _run("serve", "--cache-dir", str(tmp_path), "--model", str(tmp_path / "file" / "model.gguf"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_command_that_is_ended_runs_its_last_steps() -> None:
    code = (
        "import os, signal, sys, types\n"
        "from lorafleet_cli import main\n"
        "def command():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        print('stopped')\n"
        "sys.modules['lorafleet_cli.up'].command = command\n"
        "main.main()"
    )
    result = _run("up", code=f"import lorafleet_cli.up\n{code}")
    assert result.stdout == "stopped\n"
    assert result.returncode == 128 + signal.SIGTERM

"""What is wrong with the question itself is said before the demo starts anything; answers are shown as they are."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lorafleet_cli.console import make_table

_TEMPLATES = ("--prompt", "{{ text }}\\nLabel:", "--completion", " {{ label }}\\n")


def _demo(home: Path, *arguments: str) -> str:
    """The one line of the error."""
    command = [sys.executable, "-m", "lorafleet_cli.main", "demo", "--home", str(home), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert not home.exists(), "something was started"
    return line


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def _write_rows(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"text": "a", "label": "b"}) + "\n")
    return path


def test_unknown_task_is_named_with_the_known_ones(home: Path) -> None:
    assert "task 'chess' has no spec at" in (line := _demo(home, "--task", "chess"))
    assert "choose one of docstrings, e2e_nlg" in line


def test_missing_folder_is_named(home: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'} does not exist" in _demo(home, "--data", str(tmp_path / "absent"), *_TEMPLATES)


def test_folder_without_rows_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no train file" in _demo(home, "--data", str(tmp_path / "empty"), *_TEMPLATES)


def test_own_data_needs_templates(home: Path, tmp_path: Path) -> None:
    rows = _write_rows(tmp_path / "kinds.jsonl")
    assert "--data needs --prompt and --completion" in _demo(home, "--data", str(rows))


def test_templates_without_own_data_are_not_ignored(home: Path) -> None:
    assert "--prompt, --completion and --metric go with --data" in _demo(home, *_TEMPLATES)


def test_name_of_a_task_is_not_taken_over(home: Path, tmp_path: Path) -> None:
    rows = _write_rows(tmp_path / "docstrings" / "train.jsonl")
    line = _demo(home, "--data", str(rows.parent), *_TEMPLATES)
    assert "the name 'docstrings' of" in line
    assert "rename the folder or file" in line


def test_folder_whose_name_no_adapter_can_have_is_refused(home: Path, tmp_path: Path) -> None:
    rows = _write_rows(tmp_path / "my data!" / "train.jsonl")
    assert "name: " in _demo(home, "--data", str(rows.parent), *_TEMPLATES)


def test_answers_of_models_are_shown_as_they_are() -> None:
    text = "caps[key] = value [/b] [red]"
    console = Console(file=io.StringIO(), width=80)
    console.print(make_table("[a] title", ("who", "text"), [("base", text), ("none", None)]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert text in shown
    assert "[a] title" in shown
    assert "-" in shown

"""README is true: its commands and paths exist."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from lorafleet_pipeline.spec import parse_spec
from lorafleet_serving.api_keys import ApiKey, ApiKeys
from tests.repository.sources import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
EXAMPLES = {"keys" if text.startswith("keys:") else "spec": text for kind, text in FENCES if kind == "yaml"}
COMMANDS = sorted(
    {line.strip().removeprefix("$ ") for kind, text in FENCES if kind == "sh" for line in text.splitlines()}
)


def test_readme_names_the_two_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {command.split()[1] for command in COMMANDS if command.startswith("make ")} <= targets


def test_every_lorafleet_command_of_the_readme_exists() -> None:
    names = sorted({command.split()[1] for command in COMMANDS if command.startswith("lorafleet ")})
    assert names
    for name in names:
        command = [sys.executable, "-m", "lorafleet_cli.main", name, "--help"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{name}: {result.stderr}"


def test_every_path_of_the_annotated_tree_exists() -> None:
    (tree,) = [text for kind, text in FENCES if kind == "text" and "dags/" in text]
    stack: list[tuple[int, str]] = []
    for line in tree.splitlines():
        match = re.match(r"( *)([\w./-]+)", line)
        if not match:
            continue
        depth, name = len(match[1]), match[2]
        stack = [entry for entry in stack if entry[0] < depth]
        stack.append((depth, name.rstrip("/")))
        path = ROOT.joinpath(*(part for _, part in stack))
        assert path.exists(), f"README's tree names {path.relative_to(ROOT)}"


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt", "Makefile"])
def test_the_files_around_the_readme_exist(name: str) -> None:
    assert (ROOT / name).is_file()


def test_the_spec_of_the_readme_is_one() -> None:
    assert parse_spec(yaml.safe_load(EXAMPLES["spec"]), source="README").name == "support-bot"


def test_the_keys_of_the_readme_are_read_with_all_they_may_have(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(EXAMPLES["keys"])
    (key,) = ApiKeys.read(tmp_path / "keys.yaml")
    assert all(getattr(key, item.name) != item.default for item in fields(ApiKey))


def test_every_variable_of_the_platform_is_in_the_readme() -> None:
    source = (ROOT / "operators/lorafleet_pipeline/settings.py").read_text()
    variables = set(re.findall(r"LORAFLEET_[A-Z0-9_]+", source))
    assert variables
    assert {name for name in variables if f"`{name}`" not in README} == set()

"""What `lorafleet bench` refuses before it measures anything, and what it tells beside the figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorafleet_cli.bench import command
from lorafleet_pipeline.exceptions import InvalidSetting
from tests.benchmarks import serving
from tests.benchmarks.vllm_peer import NAMES
from tests.serving.tiny_model import make_tiny_model


def test_an_environment_without_vllm_is_refused(tmp_path: Path) -> None:
    given = ["serving", "--model", str(make_tiny_model(tmp_path / "model")), "--vllm-python", sys.executable]
    result = CliRunner().invoke(command, given)
    assert isinstance(result.exception, InvalidSetting)
    assert str(result.exception).startswith(f"--vllm-python is {sys.executable}, where vllm cannot be imported")
    assert result.output == ""


def test_the_peer_s_version_stands_beside_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "measure", lambda *_: dict.fromkeys(NAMES, 1.0))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.11.0\n")
    python.chmod(0o755)
    asked = ["serving", "--model", str(make_tiny_model(tmp_path / "model")), "--json"]
    alone, beside = (
        json.loads(CliRunner().invoke(command, given).output)
        for given in (asked, [*asked, "--vllm-python", str(python)])
    )
    assert beside["versions"] == {**alone["versions"], "vllm": "0.11.0"}
    assert "vllm" not in alone["versions"]

"""What `lorafleet bench` refuses before it measures anything."""

from __future__ import annotations

import sys
from pathlib import Path

from typer.testing import CliRunner

from lorafleet_cli.bench import command
from lorafleet_pipeline.exceptions import InvalidSetting
from tests.serving.tiny_model import make_tiny_model


def test_an_environment_without_vllm_is_refused(tmp_path: Path) -> None:
    given = ["serving", "--model", str(make_tiny_model(tmp_path / "model")), "--vllm-python", sys.executable]
    result = CliRunner().invoke(command, given)
    assert isinstance(result.exception, InvalidSetting)
    assert str(result.exception).startswith(f"--vllm-python is {sys.executable}, where vllm cannot be imported")
    assert result.output == ""

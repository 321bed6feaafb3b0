"""The whole stack, started once, with a dataset small enough to train on in seconds."""

from __future__ import annotations

import builtins
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.stack.stack import Stack
from lorafleet_pipeline.stack.status import StackStatus
from lorafleet_serving.client import PodClient

ADAPTER = "kinds"
STEPS = 30
CHECKPOINT_EVERY = 20
"""Steps, as the spec has it by default: a killed training has one checkpoint to resume from."""


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up, with an adapter trained by its DAG."""

    stack: Stack
    status: StackStatus
    settings: PlatformSettings
    data: Path
    demo: dict[str, Any]
    """What `lorafleet demo --json` printed."""
    client: PodClient
    """Calls to the pod without credentials."""

    def lorafleet(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on this stack."""
        return run_lorafleet(self.stack.home.folder, *arguments)


def run_lorafleet(home: Path, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run the command line on a home folder."""
    command = [sys.executable, "-m", "lorafleet_cli.main", *arguments]
    environment = {**os.environ, "LORAFLEET_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s)


def write_kinds(folder: Path) -> None:
    """Names of Python's library and what kind of name each is: a task that a few steps teach."""
    names = sorted({name for module in (builtins, errno, os, signal, socket) for name in dir(module)})
    rows = [json.dumps({"name": name, "kind": _kind(name)}) for name in names if not name.startswith("_")]
    folder.mkdir(parents=True)
    (folder / "names.jsonl").write_text("\n".join(rows) + "\n")


def _kind(name: str) -> str:
    if name.isupper():
        return "constant"
    return "class" if name[0].isupper() else "function"


def demo_arguments(data: Path, *more: str) -> tuple[str, ...]:
    """Arguments of a demo over the small dataset."""
    return (
        *("demo", "--data", str(data), "--metric", "accuracy", "--steps", str(STEPS), "--keep", "--json"),
        *("--prompt", "Name: {{ name }}\\nKind:", "--completion", " {{ kind }}\\n"),
        *more,
    )


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack on which the demo has run."""
    home = tmp_path_factory.mktemp("home")
    data = tmp_path_factory.mktemp("data") / ADAPTER
    write_kinds(data)
    stack = Stack(home)
    try:
        result = run_lorafleet(home, *demo_arguments(data))
        assert result.returncode == 0, result.stderr
        settings = PlatformSettings.load(environ={}, home=home)
        with PodClient(settings.pods[0]) as client:
            yield RunningStack(stack, stack.status(), settings, data, json.loads(result.stdout), client)
    finally:
        stack.down()

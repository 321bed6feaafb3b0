"""A process is told apart by more than its pid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from lorafleet_pipeline.process_identity import ProcessEntry, ProcessIdentity


def test_ended_process_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        assert identity.is_alive
        process.kill()
    assert not identity.is_alive
    assert ProcessIdentity.of(process.pid) is None


@pytest.mark.parametrize("name", [b"a) S 1 (b", b"\xff\xfe"])
def test_name_of_a_process_does_not_confuse_its_entry(tmp_path: Path, name: bytes) -> None:
    command = os.fsencode(tmp_path) + b"/" + name
    os.symlink(sys.executable, command)
    program = "print('up', flush=True); input()"
    with subprocess.Popen(
        [command, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONHOME": sys.base_prefix}
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        entry = ProcessEntry.of(process.pid)
        process.kill()
    assert entry is not None
    assert entry.group == os.getpgrp()


def test_identity_is_read_as_it_was_written(tmp_path: Path) -> None:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    path = tmp_path / "process.json"
    assert ProcessIdentity.read(path) is None
    path.write_text(json.dumps(asdict(identity)))
    assert ProcessIdentity.read(path) == identity
    for broken in ('{"pid": 1, "start_time": 2}', '{"pid": 1', "[]"):
        path.write_text(broken)
        assert ProcessIdentity.read(path) is None

"""Processes are found by group and environment, and only those meant are stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.stack.process import group_members, processes_with, stop_processes
from tests.waiting import wait_for

_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)
_PARENT = "import subprocess; print('up', flush=True); subprocess.run(['sleep', '60'])"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True, env={**os.environ, "STACK_TEST": "one"})
    environment = Path(f"/proc/{process.pid}/environ")
    # Popen returns once files are closed for the new program, a moment before the kernel lays out its environment.
    wait_for(lambda: b"STACK_TEST=one" in environment.read_bytes(), "the sleeper's environment")
    yield process
    process.kill()
    process.wait()


def _identity(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    return identity


def test_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = _identity(sleeper)
    assert stop_processes([identity], 10.0) == []
    assert sleeper.returncode is None
    assert not identity.is_alive


@pytest.mark.parametrize("change", [{"started_ticks": 1}, {"boot_id": "another"}])
def test_another_process_of_the_same_pid_is_left_alone(
    sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    former = replace(_identity(sleeper), **change)  # type: ignore[arg-type]
    stop_processes([former], 1.0)
    assert not former.is_alive
    assert sleeper.poll() is None


def test_stubborn_process_is_killed_and_named() -> None:
    with subprocess.Popen([sys.executable, "-c", _STUBBORN], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        identity = _identity(process)
        assert stop_processes([identity], 0.3) == [identity]


def test_group_is_found_after_its_leader_died() -> None:
    process = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    while len(group_members(process.pid)) < 2:
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    (orphan,) = group_members(process.pid)
    stop_processes([orphan], 5.0)
    assert not group_members(process.pid)


def test_process_is_found_by_what_stands_in_its_environment(sleeper: subprocess.Popen[bytes]) -> None:
    assert processes_with("STACK_TEST", "one") == [_identity(sleeper)]
    assert processes_with("STACK_TEST", "on") == []

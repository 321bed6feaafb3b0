"""The stack as real processes: up, down, crashes, and what a killed supervisor leaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.settings import PlatformSettings, read_env_file
from lorafleet_pipeline.stack.components import STACK_ID
from lorafleet_pipeline.stack.listeners import group_listens
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.ports import ADMIN_GRPC_OFFSET, free_port, read_ports
from lorafleet_pipeline.stack.process import group_members, processes_with
from lorafleet_pipeline.stack.seaweedfs import S3Keys, free_ports, s3_client
from lorafleet_pipeline.stack.stack import Stack
from lorafleet_pipeline.stack.state import ComponentState, ComponentStatus, StackState
from lorafleet_pipeline.stack.status import StackStatus

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

S3_ONLY = StackOptions(components=("s3",))
_WAIT_S = 240.0
"""As long as the slowest component may take to start."""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "home")
    # The preferred ports are everyone's: another stack could take them between a test's two starts.
    made.home.create()
    made.home.ports.write_text(json.dumps({"mlflow": free_port(), "pod": free_port(), **free_ports()}))
    yield made
    made.down()
    state = StackState.read(made.home.state)
    assert state is None or not processes_with(STACK_ID, state.stack_id)


def _component(status: StackStatus, name: str) -> ComponentStatus:
    return next(entry for entry in status.components if entry.name == name)


def _pid(status: StackStatus, name: str) -> int:
    pid = _component(status, name).pid
    assert pid is not None
    return pid


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def _state(stack: Stack) -> StackState:
    state = StackState.read(stack.home.state)
    assert state is not None
    return state


def _kill_supervisor(stack: Stack) -> None:
    supervisor = _state(stack).supervisor
    os.kill(supervisor.pid, signal.SIGKILL)
    _await(lambda: not supervisor.is_alive)


def _client(stack: Stack) -> S3Client:
    environment = read_env_file(stack.home.environment)
    keys = S3Keys(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    return s3_client(environment["LORAFLEET_S3_ENDPOINT"], keys)


def _put(stack: Stack, key: str) -> None:
    _client(stack).put_object(Bucket="datasets", Key=key, Body=b"row")


def _has(stack: Stack, key: str) -> bool:
    return bytes(_client(stack).get_object(Bucket="datasets", Key=key)["Body"].read()) == b"row"


def test_stack_comes_up_survives_crashes_and_goes_down(stack: Stack) -> None:
    seen: list[StackStatus] = []
    up = stack.up(StackOptions(components=("s3", "mlflow")), seen.append)
    assert up.is_ready
    assert {_component(status, "mlflow").state for status in seen} >= {ComponentState.STARTING, ComponentState.READY}
    settings = PlatformSettings.load({}, home=stack.home.folder)
    assert settings.mlflow_url == up.urls.mlflow
    assert settings.registry().search_models() == []
    _put(stack, "kept")

    # The server's own child would keep the port if only the killed process were looked at.
    old = {name: _pid(up, name) for name in ("s3", "mlflow")}
    assert len(group_members(old["mlflow"])) > 1
    for pid in old.values():
        os.kill(pid, signal.SIGKILL)
    _await(lambda: all(_component(stack.status(), name).restarts == 1 for name in old))
    _await(lambda: stack.status().is_ready)
    again = stack.status()
    assert again.urls == up.urls
    assert {_pid(again, name) for name in old}.isdisjoint(old.values())
    assert settings.registry().search_models() == []
    assert _has(stack, "kept")

    stack_id = _state(stack).stack_id
    assert stack.down()
    assert not processes_with(STACK_ID, stack_id)
    assert {entry.state for entry in stack.status().components} == {ComponentState.STOPPED}
    assert not stack.down()


def test_up_is_idempotent_and_refuses_to_change_what_runs(stack: Stack) -> None:
    first = stack.up(S3_ONLY)
    assert _pid(stack.up(S3_ONLY), "s3") == _pid(first, "s3")
    with pytest.raises(StackError, match="is up without mlflow: `lorafleet down` first"):
        stack.up(StackOptions(components=("s3", "mlflow")))
    assert stack.status().is_ready


def test_restart_keeps_addresses_secrets_and_objects(stack: Stack) -> None:
    first = stack.up(S3_ONLY)
    environment = read_env_file(stack.home.environment)
    _put(stack, "kept")
    stack.down()
    assert stack.up(S3_ONLY).urls == first.urls
    assert read_env_file(stack.home.environment) == environment
    assert _has(stack, "kept")


def test_files_with_secrets_are_for_the_owner_alone(stack: Stack) -> None:
    stack.up(S3_ONLY)
    for path in (stack.home.secrets, stack.home.environment, stack.home.state):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(stack.home.folder.stat().st_mode) == 0o700


def test_what_a_killed_supervisor_left_is_stopped_by_down(stack: Stack) -> None:
    left = _component(stack.up(S3_ONLY), "s3").process
    assert left is not None
    _kill_supervisor(stack)
    status = stack.status()
    assert not status.is_supervised
    assert _component(status, "s3").state is ComponentState.ORPHANED
    assert left.is_alive
    assert stack.down()
    assert not left.is_alive


def test_what_a_killed_supervisor_left_is_replaced_by_up(stack: Stack) -> None:
    first = stack.up(S3_ONLY)
    _put(stack, "kept")
    _kill_supervisor(stack)
    second = stack.up(S3_ONLY)
    assert second.is_ready
    assert second.urls == first.urls
    assert _pid(second, "s3") != _pid(first, "s3")
    assert _has(stack, "kept")


def test_demanded_port_that_is_taken_stops_nothing_and_starts_nothing(stack: Stack) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port} for s3 is taken by another process: stop that, or choose"):
            stack.up(StackOptions(components=("s3",), ports={"s3": port}))
    assert StackState.read(stack.home.state) is None


def test_remembered_port_that_was_taken_meanwhile_is_replaced_and_told(stack: Stack) -> None:
    port = free_port()
    stack.up(StackOptions(components=("s3",), ports={"s3": port}))
    stack.down()
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        status = stack.up(S3_ONLY)
        assert status.urls.s3 != f"http://127.0.0.1:{port}"
        assert any(f"port {port} of s3 is taken" in note for note in status.notes)


def test_copy_of_a_home_has_no_right_to_the_processes(stack: Stack, tmp_path: Path) -> None:
    first = stack.up(S3_ONLY)
    copied = Stack(tmp_path / "copy")
    shutil.copytree(stack.home.folder, copied.home.folder, ignore=shutil.ignore_patterns("*.sock"))
    assert not copied.status().is_supervised
    assert copied.status().components == ()
    assert not copied.down()
    assert _pid(stack.status(), "s3") == _pid(first, "s3")
    assert stack.status().is_ready


def test_damaged_state_is_told_and_mended_by_down(stack: Stack) -> None:
    stack.up(S3_ONLY)
    stack_id = _state(stack).stack_id
    stack.home.state.write_text("{")
    for call in (stack.status, stack.up):
        with pytest.raises(StackError, match=r"state\.json is damaged: `lorafleet down` mends it"):
            call()
    assert stack.down()
    assert not processes_with(STACK_ID, stack_id)
    assert {entry.state for entry in stack.status().components} == {ComponentState.STOPPED}


def test_lost_state_lets_no_second_stack_into_the_home(stack: Stack) -> None:
    stack.up(S3_ONLY)
    stack_id = _state(stack).stack_id
    stack.home.state.unlink()
    with pytest.raises(StackError, match=r"another supervisor, process \d+, runs on .*: `lorafleet down` ends it"):
        stack.up(S3_ONLY)
    stack.up(S3_ONLY)
    assert not processes_with(STACK_ID, stack_id)


def test_component_is_kept_running_while_its_state_cannot_be_told(stack: Stack) -> None:
    old = _pid(stack.up(S3_ONLY), "s3")
    stack_id = _state(stack).stack_id
    stack.home.state.unlink()
    stack.home.state.mkdir()
    os.kill(old, signal.SIGKILL)
    environment = read_env_file(stack.home.environment)
    port = int(environment["LORAFLEET_S3_ENDPOINT"].rpartition(":")[2])
    _await(
        lambda: any(mark.pid != old and group_listens(mark.pid, port) for mark in processes_with(STACK_ID, stack_id))
    )
    assert stack.down()
    assert not processes_with(STACK_ID, stack_id)
    stack.home.state.rmdir()


def test_supervisor_that_cannot_begin_says_why_at_once(stack: Stack, tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    options = StackOptions(components=("airflow-scheduler",), dags=str(dags))
    dags.rmdir()
    with pytest.raises(StackError, match=r"the DAG folder .*dags does not exist: correct `--dags`"):
        stack.up(options)
    assert not stack.status().is_supervised


def test_what_was_asked_for_and_is_not_so_is_refused(stack: Stack) -> None:
    stack.up(S3_ONLY)
    asked = StackOptions(components=("s3",), model="some/other", ports={"s3": free_port()})
    with pytest.raises(StackError, match=r"is up with the base model .*, with s3 on port \d+: `lorafleet down` first"):
        stack.up(asked)
    assert stack.status().is_ready


def test_nothing_is_left_outside_the_home(stack: Stack) -> None:
    def left() -> list[str]:
        # Other servers of this machine leave theirs under their own ports.
        numbers = {str(port) for port in read_ports(stack.home.ports).values()}
        numbers.add(str(read_ports(stack.home.ports)["admin"] + ADMIN_GRPC_OFFSET))
        names = [path.name for path in Path("/tmp").iterdir()]
        pids = {str(pid) for pid in started}
        return [
            name
            for name in names
            if (name.endswith(".sock") and re.split(r"[-.]", name)[-2] in numbers)
            or (name.startswith("weed.") and name.rpartition(".")[2] in pids)
        ]

    started = [_pid(stack.up(S3_ONLY), "s3")]
    assert left()
    stack.down()
    assert not left()
    started.append(_pid(stack.up(S3_ONLY), "s3"))
    _kill_supervisor(stack)
    os.kill(started[-1], signal.SIGKILL)
    stack.down()
    assert not left()


def test_full_disk_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "home", min_free_bytes=1 << 60)
    with pytest.raises(StackError, match=r"GiB are free on the disk of .*home.* or choose another folder"):
        stack.up(S3_ONLY)
    assert not stack.home.folder.exists()


def test_component_that_cannot_start_is_named_and_nothing_is_left(stack: Stack, tmp_path: Path) -> None:
    model = tmp_path / "absent.gguf"
    with pytest.raises(StackError, match=r"pod could not be prepared .*absent\.gguf does not exist: correct the path"):
        stack.up(StackOptions(components=("s3", "pod"), model=str(model)))
    state = _state(stack)
    assert not state.supervisor.is_alive
    assert not processes_with(STACK_ID, state.stack_id)


def test_home_that_was_never_started_has_nothing_to_stop(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "never")
    assert not stack.down()
    assert not stack.status().is_ready
    assert not stack.home.folder.exists()

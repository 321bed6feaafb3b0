"""Ports: free, remembered, and said when they change."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack import ports, reservations, seaweedfs
from lorafleet_pipeline.stack.ports import PREFERRED_PORTS, PortChoice, free_port, is_free
from lorafleet_pipeline.stack.reservations import PortReservations


@contextmanager
def _taken(port: int) -> Iterator[None]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


def choose_ports(path: Path, fixed: dict[str, int]) -> PortChoice:
    return ports.choose_ports(path, fixed, lambda port: False)


def test_free_port_is_free() -> None:
    port = free_port(highest=55_000)
    assert port <= 55_000
    assert is_free(port)
    with _taken(port):
        assert not is_free(port)


def test_ports_are_remembered_and_distinct(tmp_path: Path) -> None:
    first = choose_ports(tmp_path / "ports.json", {})
    assert choose_ports(tmp_path / "ports.json", {}).ports == first.ports
    assert set(first.ports) == set(PREFERRED_PORTS)
    assert len(set(first.ports.values())) == len(first.ports)


def test_remembered_port_that_a_stranger_took_is_replaced_and_told(tmp_path: Path) -> None:
    remembered = free_port()
    choose_ports(tmp_path / "ports.json", {"mlflow": remembered})
    with _taken(remembered):
        choice = choose_ports(tmp_path / "ports.json", {})
    assert choice.ports["mlflow"] != remembered
    (note,) = choice.notes
    assert note.startswith(f"port {remembered} of mlflow is taken by another process; mlflow uses ")
    assert json.loads((tmp_path / "ports.json").read_text())["mlflow"] == choice.ports["mlflow"]


def test_demanded_port_that_is_taken_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    port = free_port()
    with _taken(port), pytest.raises(StackError, match=rf"port {port} for pod is taken .* `--port pod=\d+`"):
        choose_ports(tmp_path / "ports.json", {"pod": port})
    assert not (tmp_path / "ports.json").exists()


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"web": 80}, "no port is named 'web'"),
        ({"pod": 70_000}, "port 70000 for pod is not between"),
        ({"pod": 45_001, "s3": 45_001}, "port 45001 is given to both pod and s3"),
        ({"admin": 60_000}, "port 60000 for admin is taken"),
    ],
)
def test_demand_that_makes_no_sense_is_refused(tmp_path: Path, fixed: dict[str, int], message: str) -> None:
    with pytest.raises(StackError, match=message):
        choose_ports(tmp_path / "ports.json", fixed)


def test_demanded_port_is_not_given_to_another_name(tmp_path: Path) -> None:
    wanted = choose_ports(tmp_path / "ports.json", {}).ports["airflow"]
    (tmp_path / "ports.json").unlink()
    choice = choose_ports(tmp_path / "ports.json", {"pod": wanted})
    assert choice.ports["pod"] == wanted
    assert choice.ports["airflow"] != wanted


def test_port_that_is_remembered_for_two_names_is_given_to_one(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "ports.json").write_text(json.dumps({"pod": port, "s3": port}))
    chosen = list(choose_ports(tmp_path / "ports.json", {}).ports.values())
    assert len(set(chosen)) == len(chosen)
    assert port in chosen


def test_ports_of_a_server_are_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = iter([40_000, 40_000, 40_001, 50_001] + list(range(41_000, 41_050)) * 2)
    monkeypatch.setattr(seaweedfs, "free_port", lambda highest: next(port for port in offered if port <= highest))
    chosen = list(seaweedfs.free_ports().values())
    assert len(set(chosen)) == len(chosen)
    assert 50_001 not in chosen


def test_port_that_another_stack_reserved_is_not_chosen(tmp_path: Path) -> None:
    ours, theirs = PortReservations(str(tmp_path)), PortReservations(str(tmp_path))
    first = choose_ports(tmp_path / "first.json", {})
    theirs.hold(first.ports.values())
    second = ports.choose_ports(tmp_path / "second.json", {}, ours.is_reserved)
    assert set(second.ports.values()).isdisjoint(first.ports.values())
    with pytest.raises(StackError, match="is taken by another process"):
        ports.choose_ports(tmp_path / "third.json", {"s3": first.ports["s3"]}, ours.is_reserved)
    theirs.release()
    assert not ours.is_reserved(first.ports["s3"])


def test_two_stacks_do_not_choose_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "_CHOICE_LIMIT_S", 0.1)
    ours, theirs = PortReservations(str(tmp_path)), PortReservations(str(tmp_path))
    with theirs.exclusive(), pytest.raises(StackError, match="has been choosing ports"), ours.exclusive():
        pass
    with ours.exclusive():
        pass


@pytest.mark.parametrize("text", ["garbage", "[1, 2]", '{"mlflow": "x", "pod": 99999, "airflow": null}'])
def test_damaged_memory_of_ports_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ports.json"
    path.write_text(text)
    choice = choose_ports(path, {})
    assert set(choice.ports) == set(PREFERRED_PORTS)
    assert ports.read_ports(path) == choice.ports

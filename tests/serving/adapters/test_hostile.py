"""Names and files that somebody made to break a pod: all are refused, and nothing else notices."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from lorafleet_contract.exceptions import RegistryError
from lorafleet_contract.states import ServeState
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.hostile_files import hostile_files
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess
from tests.serving.registered_adapter import Registered, RegistryHand

TRAP = "127.0.0.1:{port}"
NAMES = (
    "..", "../..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "..\\..\\windows", "....//....//etc", "./.", ".",
    "/etc/passwd", "/", "//", "//" + TRAP + "/x", "/proc/self/environ", "/dev/zero", "/dev/stdin", "~/.aws/credentials",
    "file:///etc/passwd", "http://" + TRAP + "/x", "https://" + TRAP + "/x", "ftp://" + TRAP + "/x",
    "gopher://" + TRAP + "/x", "s3://" + TRAP + "/x", "s3://user@" + TRAP + "/x", "s3://mlflow/../other/x", "s3://",
    "s3:///x", "hf://someone/something", "dict://" + TRAP, "jar:http://" + TRAP + "!/x", "mlflow-artifacts:/x",
    "\\\\" + TRAP + "\\share", "name@", "@champion", "name@../x", "name@champion@champion", "name:", ":1", "name:0",
    "name:-1", "name:1e9", "name:99999999999999999999", "name:1:1", "name@champion:1", "name\0", "name\n", "na me",
    "name\r\nx-evil: 1", "\uff4e\uff41\uff4d\uff45", "n\u0430me", "\u202ename", "\ud800", "n" * 101, "n" * 5000, "%00", "${jndi:ldap://x}",
    "{{7*7}}", "'; drop table adapters; --", "<script>alert(1)</script>", "__base_model__/..", "-rf", "con.txt",
)  # fmt: skip


@contextmanager
def trap() -> Iterator[tuple[int, list[str]]]:
    """A port that nobody has a reason to reach, and who did."""
    reached: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def watch() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                reached.append(connection.recv(100).decode(errors="replace"))
                connection.close()

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield server.getsockname()[1], reached
        finally:
            server.shutdown(socket.SHUT_RDWR)
    watching.join()


@pytest.fixture(scope="module")
def victim(pod_factory: PodFactory) -> PodProcess:
    started = pod_factory()
    started.wait_ready()
    return started


@pytest.fixture(scope="module")
def resident(victim: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory) -> Registered:
    """A version that serves before and after."""
    registered = registry.register("resident", tiny_adapter(1))
    registry.promote(registered)
    victim.wait_serving("resident", 1)
    return registered


def answer(pod: PodProcess) -> str:
    body = {"model": "resident", "prompt": "the cat", "max_tokens": 8}
    return str(pod.http.post("/v1/completions", json=body).json()["choices"][0]["text"])


def ask(pod: PodProcess, name: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """A name in every place that takes one."""
    merged = {"ids": [name, "resident"], "weights": [1.0, 1.0], "merge_strategy": "linear"}
    bodies: tuple[tuple[str, dict[str, object]], ...] = (
        ("/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1}),
        ("/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        ("/v1/embeddings", {"model": name, "input": "a"}),
        ("/generate", {"inputs": "a", "parameters": {"adapter_id": name, "max_new_tokens": 1}}),
        ("/generate", {"inputs": "a", "parameters": {"merged_adapters": merged, "max_new_tokens": 1}}),
    )
    for path, body in bodies:
        # As text that any parser takes, whatever the name holds.
        yield pod.http.post(path, content=json.dumps(body), headers={**headers, "Content-Type": "application/json"})


def test_hostile_names_reach_nothing(victim: PodProcess, resident: Registered) -> None:
    before, children = answer(victim), victim.child_pids()
    with trap() as (port, reached):
        for name in NAMES:
            for headers in ({}, {"Authorization": f"Bearer {ADMIN_TOKEN}"}):
                for response in ask(victim, name.replace("{port}", str(port)), headers):
                    assert response.status_code in (403, 404, 409, 422), (name, response.status_code, response.text)
                    assert "error" in response.json()
                    assert "x-evil" not in response.headers
    assert len(NAMES) >= 50
    assert not reached
    assert victim.child_pids() == children
    assert answer(victim) == before


def test_hostile_names_in_the_registry_are_ignored(
    victim: PodProcess, resident: Registered, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    good = registry.register("well-named", tiny_adapter(2))
    tags = registry.client.get_version(good.name, good.version).tags
    hostile = ("..", ".", "...", "na me", "-rf", "con.txt", "n" * 101, "name@champion", "\u202ename", "{{7*7}}", "%00")
    taken = [name for name in hostile if _create(registry, name, good.address, tags)]
    assert len(taken) >= 5
    last = registry.register("registered-last", tiny_adapter(2))
    registry.promote(last)
    victim.wait_serving("registered-last", 1)
    known = {adapter.name for adapter in victim.client.report().adapters}
    assert not known & set(taken)


def test_hostile_addresses_in_the_registry_reach_nothing(
    victim: PodProcess, resident: Registered, registry: RegistryHand, tiny_adapter: SourceFactory
) -> None:
    with trap() as (port, reached):
        there = TRAP.replace("{port}", str(port))
        addresses = (
            f"http://{there}/x", f"s3://{there}/x", f"s3://user@{there}/x", "file:///etc", "/etc", "/proc/self",
            "s3://mlflow/../../etc", "s3://other/x", "dbfs:/x", f"ftp://{there}/x", "s3://mlflow",
        )  # fmt: skip
        good = registry.register("well-placed", tiny_adapter(2))
        tags = registry.client.get_version(good.name, good.version).tags
        names = {f"elsewhere-{number}": address for number, address in enumerate(addresses)}
        taken = [name for name, address in names.items() if _create(registry, name, address, tags)]
        assert len(taken) >= 3
        for name in taken:
            victim.wait_for(partial(_is_refused, victim, name), f"{name} to be refused")
    assert not reached


def _create(registry: RegistryHand, name: str, address: str, tags: Mapping[str, str]) -> bool:
    """Register a version with a champion's alias; tells whether MLflow takes such a name and address."""
    try:
        version = registry.create(name, address, tags)
        registry.client.set_alias(name, "champion", version)
    except RegistryError as error:
        if "INVALID_PARAMETER_VALUE" not in str(error):
            raise
        return False
    return True


def _is_refused(pod: PodProcess, name: str) -> bool | None:
    version = pod.version(name, 1)
    return (version is not None and version.state in (ServeState.REFUSED, ServeState.FAILED)) or None


@pytest.mark.faults
def test_hostile_files_are_refused_and_harm_nothing(
    victim: PodProcess,
    resident: Registered,
    registry: RegistryHand,
    tiny_adapter: SourceFactory,
    tmp_path: Path,
    name: str,
) -> None:
    before, children = answer(victim), victim.child_pids()
    good = tiny_adapter(3)
    hostile = {}
    for kind, spoil in hostile_files().items():
        folder = tmp_path / kind
        shutil.copytree(good.folder, folder)
        spoil(folder)
        # All that a pod checks before it reads them is right: digest, signature and gate.
        hostile[kind] = registry.register(f"{name}-{kind}", replace(good, folder=folder))
    assert len(hostile) >= 50
    for registered in hostile.values():
        registry.promote(registered)
    for kind, registered in hostile.items():
        refused = victim.wait_state(registered.name, 1, ServeState.REFUSED)
        assert refused.error, kind
        assert victim.http.post("/v1/completions", json={"model": registered.name, "prompt": "a"}).status_code == 409
    assert victim.child_pids() == children, "a process died of it"
    assert answer(victim) == before

"""Artifacts read through a real MLflow server that serves them, and through servers that are not what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest

from lorafleet_contract.registry import RegistryEndpoint
from lorafleet_pipeline.stack.ports import free_port
from lorafleet_serving.adapters.mlflow_source import MLflowSource
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed
from tests.http_server import Server, running
from tests.waiting import wait_for

CONTENT = os.urandom(3 << 20)
WEIGHTS = "adapter/adapter model.safetensors"
ROUTE = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server that does nothing but serve artifacts, with an adapter's among them."""
    folder = tmp_path_factory.mktemp("mlflow-artifacts")
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "mlflow", "server", "--artifacts-only", "--workers", "1", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(url), "MLflow to answer", 120)
        for path, data in {"manifest.json": b"{}", WEIGHTS: CONTENT}.items():
            httpx.put(f"{url}{ROUTE}/1/models/m-1/{path}", content=data, trust_env=False).raise_for_status()
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@contextmanager
def source_of(url: str | None, limit_s: float = 60.0) -> Iterator[MLflowSource]:
    with closing(MLflowSource(None if url is None else RegistryEndpoint(url), limit_s=limit_s)) as source:
        yield source


@pytest.mark.parametrize("host", ["", "own"])
def test_what_mlflow_serves_is_listed_and_read(server: str, tmp_path: Path, host: str) -> None:
    netloc = f"//{server.partition('://')[2]}" if host else ""
    with source_of(server) as source:
        found = source.list(f"mlflow-artifacts:{netloc}/1/models/m-1")
        assert {path: item.size for path, item in found.items()} == {"manifest.json": 2, WEIGHTS: len(CONTENT)}
        assert source.read(found["manifest.json"]) == b"{}"
        source.download(found[WEIGHTS], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "address",
    [
        "mlflow-artifacts://elsewhere.example/1/models/m-1",
        "mlflow-artifacts://127.0.0.1:1/1/models/m-1",
        "mlflow-artifacts:/1/../../etc",
        "mlflow-artifacts:/",
        "mlflow-artifacts:/1/models\n/m-1",
        "mlflow-artifacts:/1?path=/etc",
    ],
)
def test_other_servers_and_other_places_are_refused_unseen(server: str, address: str) -> None:
    with source_of(server) as source, pytest.raises(AdapterRefusal):
        source.list(address)
    with source_of(None) as source, pytest.raises(AdapterRefusal):
        source.list("mlflow-artifacts:/1/models/m-1")


def test_what_takes_too_long_is_given_up_with_the_remedy(server: str, tmp_path: Path) -> None:
    with source_of(server, limit_s=0.0) as source:
        found = source.list("mlflow-artifacts:/1/models/m-1")
        with pytest.raises(FetchFailed, match="--fetch-limit"):
            source.download(found[WEIGHTS], tmp_path / "file")


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[MLflowSource]:
    """A server that lists one file of ten bytes, and answers for the file as it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "?" not in self.path:
                answer(self)
                return
            listed = json.dumps({"files": [{"path": "file", "is_dir": False, "file_size": "10"}]}).encode()
            _send(self, 200, listed)

        def log_message(self, *arguments: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    with running(server), source_of(f"http://127.0.0.1:{server.server_address[1]}") as source:
        yield source


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda handler: _send(handler, 200, b"x" * 11), "more than its 10 bytes"),
        (lambda handler: _send(handler, 200, b"x" * 9), "9 came"),
        (lambda handler: _send(handler, 200, b"x" * 9, **{"Content-Length": "10"}), "cannot read"),
        (lambda handler: _send(handler, 302, b"", Location="http://127.0.0.1:1/"), "answered 302"),
        (lambda handler: _send(handler, 404, b"no"), "answered 404"),
    ],
    ids=["longer", "shorter", "cut", "redirected", "missing"],
)
def test_a_file_that_is_not_what_was_listed_is_no_file(
    answer: Callable[[BaseHTTPRequestHandler], None], told: str, tmp_path: Path
) -> None:
    with answering(answer) as source:
        found = source.list("mlflow-artifacts:/1")["file"]
        with pytest.raises(FetchFailed, match=told):
            source.read(found)
        with pytest.raises(FetchFailed, match=told):
            source.download(found, tmp_path / "file")


@pytest.mark.parametrize("listed", [b"[]", b"no json", b'{"files": {}}', b'{"files": [{"path": "../x"}]}'])
def test_a_list_that_is_none_is_told(listed: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _send(self, 200, listed)

        def log_message(self, *arguments: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with running(server), source_of(url) as source, pytest.raises(FetchFailed, match="MLflow"):
        source.list("mlflow-artifacts:/1")

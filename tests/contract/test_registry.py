from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from mlflow import MlflowClient

from lorafleet_contract import registry
from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.exceptions import RegistryError, RegistryNotFound, RegistryUnavailable
from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from tests.services import RunningMLflow

Model = Callable[[int], str]


@pytest.fixture
def client(mlflow_server: RunningMLflow) -> RegistryClient:
    return RegistryClient(RegistryEndpoint(mlflow_server.url))


@pytest.fixture
def model(mlflow_server: RunningMLflow) -> Model:
    """Makes a registered model of its own with some versions: `model(2)` returns its name."""
    mlflow = MlflowClient(mlflow_server.url)

    def make(versions: int) -> str:
        name = f"model-{uuid4().hex[:8]}"
        mlflow.create_registered_model(name)
        for number in range(versions):
            mlflow.create_model_version(name, source=f"s3://mlflow/models/{name}/{number}")
        return name

    return make


def test_alias_moves_and_goes(client: RegistryClient, model: Model) -> None:
    name = model(2)
    client.set_alias(name, Alias.CHAMPION, 1)
    client.set_alias(name, Alias.LIVE, 1)
    client.set_alias(name, Alias.CHAMPION, 2)
    assert client.get_model(name).aliases == {"champion": 2, "live": 1}
    client.delete_alias(name, Alias.LIVE)
    client.delete_alias(name, Alias.LIVE)
    assert client.get_model(name).aliases == {"champion": 2}


def test_search_tells_aliases_and_tags_of_models(client: RegistryClient, model: Model) -> None:
    name = model(1)
    client.set_alias(name, Alias.CHAMPION, 1)
    client.set_model_tag(name, "rollout.canary", "0.1")
    (found,) = [item for item in client.search_models() if item.name == name]
    assert found.aliases == {"champion": 1}
    assert found.tags["rollout.canary"] == "0.1"


def test_versions_come_with_the_newest_change_first(client: RegistryClient, model: Model) -> None:
    name, other = model(3), model(1)
    client.transition_stage(name, 1, Stage.STAGING)
    versions = client.search_versions(name)
    assert versions[0].version == 1
    assert {version.version for version in versions} == {1, 2, 3}
    assert {version.name for version in client.search_versions()} >= {name, other}


def test_stage_moves_and_displaces(client: RegistryClient, model: Model) -> None:
    name = model(2)
    client.transition_stage(name, 1, Stage.PRODUCTION)
    client.transition_stage(name, 2, Stage.PRODUCTION, archive_existing=True)
    assert client.get_version(name, 1).stage is Stage.ARCHIVED
    assert client.get_version(name, 2).stage is Stage.PRODUCTION


def test_version_tags_are_set_and_removed(client: RegistryClient, model: Model) -> None:
    name = model(1)
    client.set_version_tag(name, 1, "serve.error", "Grund: 'ungültig' & \"mehr\"\n")
    assert client.get_version(name, 1).tags["serve.error"] == "Grund: 'ungültig' & \"mehr\"\n"
    client.delete_version_tag(name, 1, "serve.error")
    assert "serve.error" not in client.get_version(name, 1).tags


def test_artifact_address_is_where_the_version_lies(client: RegistryClient, model: Model) -> None:
    name = model(1)
    assert client.get_artifact_address(name, 1) == f"s3://mlflow/models/{name}/0"


@pytest.mark.parametrize(
    "act",
    [
        lambda client, name: client.get_model("nobody"),
        lambda client, name: client.get_version(name, 99),
        lambda client, name: client.set_alias(name, "champion", 99),
        lambda client, name: client.get_artifact_address("nobody", 1),
    ],
)
def test_what_does_not_exist_is_not_found(
    client: RegistryClient, model: Model, act: Callable[[RegistryClient, str], object]
) -> None:
    with pytest.raises(RegistryNotFound, match="not found"):
        act(client, model(1))


def test_reserved_alias_is_a_refusal_with_its_reason(client: RegistryClient, model: Model) -> None:
    with pytest.raises(RegistryError, match="INVALID_PARAMETER_VALUE"):
        client.set_alias(model(1), "latest", 1)


def test_registry_that_is_not_there_says_what_to_check() -> None:
    with pytest.raises(RegistryUnavailable, match="LORAFLEET_MLFLOW_URL"):
        RegistryClient(RegistryEndpoint("http://127.0.0.1:9")).search_models()


class _Proxy(BaseHTTPRequestHandler):
    """What stands before a managed registry: it wants credentials, and shows its own error pages."""

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] in ("Bearer t0ken", "Basic dXNlcjpwYXNz")
        body = b"<html>upstream is gone</html>" if allowed else b"<html>who are you</html>"
        self.send_response(503 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def proxy() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_credentials_are_sent_and_never_shown(proxy: str) -> None:
    with pytest.raises(RegistryError, match="401"):
        RegistryClient(RegistryEndpoint(proxy)).search_models()
    for endpoint in (RegistryEndpoint(proxy, token="t0ken"), RegistryEndpoint(proxy, username="user", password="pass")):
        with pytest.raises(RegistryUnavailable, match="503"):
            RegistryClient(endpoint).search_models()
        assert "t0ken" not in repr(endpoint)
        assert "'pass'" not in repr(endpoint)


class _Dying(BaseHTTPRequestHandler):
    """Promises a longer answer than it gives, as a server does that is killed meanwhile."""

    def do_GET(self) -> None:
        self.send_response(200 if "registered-models" in self.path else 404)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"registered_models": [')

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def test_a_registry_that_dies_in_the_middle_of_an_answer_is_unavailable() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Dying) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = RegistryClient(RegistryEndpoint(f"http://127.0.0.1:{server.server_port}"))
        with pytest.raises(RegistryUnavailable, match="LORAFLEET_MLFLOW_URL"):
            client.search_models()
        with pytest.raises(RegistryNotFound):
            client.get_version("any", 1)
        server.shutdown()
        thread.join()


class _Changing(RegistryClient):
    """Changes a version of the last page as soon as the first page was read."""

    def call(self, method: str, path: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        answer = super().call(method, path, *arguments, **more)
        if path == "model-versions/search" and self.to_change is not None:
            (name, version), self.to_change = self.to_change, None
            self.set_version_tag(name, version, "touched", "yes")
        return answer

    to_change: tuple[str, int] | None = None


def test_a_version_that_changes_while_pages_are_read_is_not_lost(
    mlflow_server: RunningMLflow, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = model(5)
    monkeypatch.setattr(registry, "_PAGE_SIZE", 2)
    client = _Changing(RegistryEndpoint(mlflow_server.url))
    client.to_change = (name, 1)
    assert sorted(item.version for item in client.search_versions(name)) == [1, 2, 3, 4, 5]
    assert client.to_change is None

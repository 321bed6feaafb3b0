"""The webhooks of pods in a real MLflow: made once, kept right, taken away, and errors that name the remedy."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from mlflow import MlflowClient
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from typer.testing import CliRunner

from lorafleet_cli.main import app
from lorafleet_contract.webhook import WEBHOOK_PATH
from lorafleet_pipeline.exceptions import InvalidSetting, WebhookRefused
from lorafleet_pipeline.registry.webhooks import EVENTS, PodWebhook, Webhooks, WebhookState
from lorafleet_pipeline.settings import PlatformSettings
from tests.conftest import MLflowFactory
from tests.services import RunningMLflow

PODS = ("http://10.0.0.1:8000", "http://10.0.0.2:8000")
OPEN = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}


@pytest.fixture(scope="module")
def server(mlflow_factory: MLflowFactory) -> RunningMLflow:
    key = Fernet.generate_key().decode()
    quick = {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": key, "MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES": "0"}
    return mlflow_factory(environment={**OPEN, **quick})


@pytest.fixture
def mlflow(server: RunningMLflow) -> MlflowClient:
    client = MlflowClient(server.url)
    for item in client.list_webhooks():
        client.delete_webhook(item.webhook_id)
    return client


def _webhooks(url: str, pods: tuple[str, ...] = PODS, secret: str = "hidden") -> Webhooks:
    settings = PlatformSettings(home=Path(), work_dir=Path(), mlflow_url=url, pods=pods, webhook_secret=secret)
    return Webhooks(settings)


def _states(found: Sequence[PodWebhook]) -> list[tuple[str, WebhookState]]:
    return [(item.pod, item.state) for item in found]


def test_each_pod_gets_one_webhook_however_often_it_is_set(server: RunningMLflow, mlflow: MlflowClient) -> None:
    webhooks = _webhooks(server.url)
    assert _states(webhooks.found()) == [(pod, WebhookState.MISSING) for pod in PODS]
    assert _states(webhooks.set()) == [(pod, WebhookState.CREATED) for pod in PODS]
    assert _states(webhooks.set()) == [(pod, WebhookState.UPDATED) for pod in PODS]
    assert _states(webhooks.found()) == [(pod, WebhookState.ACTIVE) for pod in PODS]
    held = mlflow.list_webhooks()
    assert {item.url for item in held} == {pod + WEBHOOK_PATH for pod in PODS}
    assert {(str(event.entity), str(event.action)) for item in held for event in item.events} == {
        (entity.lower(), action.lower()) for entity, action in EVENTS
    }


def test_a_webhook_that_somebody_switched_off_or_narrowed_differs_until_it_is_set_again(
    server: RunningMLflow, mlflow: MlflowClient
) -> None:
    webhooks = _webhooks(server.url)
    first, second = webhooks.set()
    assert first.webhook_id is not None
    assert second.webhook_id is not None
    mlflow.update_webhook(first.webhook_id, status="DISABLED")
    mlflow.update_webhook(second.webhook_id, events=[WebhookEvent(WebhookEntity.MODEL_VERSION, WebhookAction.CREATED)])
    assert {item.state for item in webhooks.found()} == {WebhookState.DIFFERS}
    webhooks.set()
    assert {item.state for item in webhooks.found()} == {WebhookState.ACTIVE}


def test_webhooks_of_pods_that_went_are_strays_until_pruned_and_those_of_others_are_left_alone(
    server: RunningMLflow, mlflow: MlflowClient
) -> None:
    theirs = mlflow.create_webhook("theirs", "http://10.0.0.9/", [WebhookEvent.from_str("model_version.created")])
    _webhooks(server.url).set()
    fewer = _webhooks(server.url, PODS[:1])
    assert _states(fewer.set()) == [(PODS[0], WebhookState.UPDATED), (PODS[1], WebhookState.STRAY)]
    assert _states(fewer.set(prune=True))[1] == (PODS[1], WebhookState.REMOVED)
    assert _states(fewer.remove()) == [(PODS[0], WebhookState.REMOVED)]
    assert [item.webhook_id for item in mlflow.list_webhooks()] == [theirs.webhook_id]


def test_a_server_with_the_defaults_of_mlflow_refuses_with_the_setting_that_allows_it(
    mlflow_server: RunningMLflow,
) -> None:
    with pytest.raises(WebhookRefused, match=r"10\.0\.0\.1.*MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https"):
        _webhooks(mlflow_server.url).set()
    with pytest.raises(WebhookRefused, match=r"10\.0\.0\.1.*MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true"):
        _webhooks(mlflow_server.url, ("https://10.0.0.1",)).set()


def test_secrets_stored_by_a_key_that_is_gone_are_told_with_the_key_to_set(
    server: RunningMLflow, mlflow: MlflowClient
) -> None:
    _webhooks(server.url).set()
    with sqlite3.connect(server.server.folder / "mlflow.db") as database:
        database.execute("UPDATE webhooks SET secret = ?", (Fernet(Fernet.generate_key()).encrypt(b"s").decode(),))
    database.close()
    try:
        with pytest.raises(WebhookRefused, match="MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"):
            _webhooks(server.url).found()
    finally:
        with sqlite3.connect(server.server.folder / "mlflow.db") as database:
            database.execute("UPDATE webhooks SET secret = NULL")
        database.close()


def test_a_pod_that_does_not_answer_fails_the_test_with_the_reason(server: RunningMLflow, mlflow: MlflowClient) -> None:
    webhooks = _webhooks(server.url, ("http://127.0.0.1:9",))
    webhooks.set()
    (tested,) = webhooks.tested()
    assert tested.is_answered is False
    assert "refused" in str(tested.answer)


@pytest.mark.parametrize(("pods", "secret", "named"), [((), "s", "LORAFLEET_PODS"), (PODS, "", "WEBHOOK_SECRET")])
def test_what_is_missing_is_named_before_mlflow_is_asked(pods: tuple[str, ...], secret: str, named: str) -> None:
    with pytest.raises(InvalidSetting, match=named):
        _webhooks("http://127.0.0.1:9", pods, secret).set()


def test_the_command_sets_shows_and_removes_and_never_prints_the_secret(
    server: RunningMLflow, mlflow: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LORAFLEET_HOME", str(tmp_path))
    monkeypatch.setenv("LORAFLEET_MLFLOW_URL", server.url)
    monkeypatch.setenv("LORAFLEET_PODS", ",".join(PODS))
    monkeypatch.setenv("LORAFLEET_WEBHOOK_SECRET", "hidden")

    def states(*options: str) -> list[str]:
        result = CliRunner().invoke(app, ["webhooks", *options, "--json"])
        assert result.exit_code == 0, result.output
        assert "hidden" not in result.output
        return [item["state"] for item in json.loads(result.stdout)["webhooks"]]

    assert states() == ["missing", "missing"]
    assert states("--set") == ["created", "created"]
    table = CliRunner().invoke(app, ["webhooks"])
    assert table.output.count("active") == 2
    assert all(pod in table.output for pod in PODS)
    assert states("--remove") == ["removed", "removed"]
    assert CliRunner().invoke(app, ["webhooks", "--test"]).exit_code == 1
    assert CliRunner().invoke(app, ["webhooks", "--set", "--remove"]).exit_code == 2
    assert CliRunner().invoke(app, ["webhooks", "--prune"]).exit_code == 2

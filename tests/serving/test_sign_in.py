"""An MLflow server with the controller inside and sign-in before it, and a pod that signs in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from flask import Flask

from lorafleet_contract.digest import base_digest
from lorafleet_contract.exceptions import RegistryError
from lorafleet_contract.registry import RegistryClient, RegistryEndpoint
from lorafleet_pipeline.exceptions import InvalidSetting
from lorafleet_pipeline.registry.actor import AGENT_HEADER, CONTROLLER_AGENT, USER_HEADER
from lorafleet_pipeline.registry.audit import AuditEntry, AuditLog
from lorafleet_pipeline.registry.sign_in import is_wanted, with_sign_in
from lorafleet_pipeline.settings import PlatformSettings, S3Settings
from lorafleet_pipeline.stack.ports import free_port
from lorafleet_pipeline.storage import Storage
from tests.pipeline.registry.fake_pod import ADMIN_TOKEN as FAKE_TOKEN, WEBHOOK_SECRET as FAKE_SECRET, FakePod
from tests.services import RunningMLflow, RunningS3, start_mlflow
from tests.serving.conftest import SourceFactory
from tests.serving.pod_process import PodProcess, start_pod
from tests.serving.registered_adapter import Registered, RegistryHand
from tests.waiting import wait_for

PASSWORDS = {user: f"secret-of-{user}" for user in ("root", "keeper", "ann", "bob", "reader")}
"""`root` is made by MLflow, `keeper` is the controller's, `reader` the pod's."""


@pytest.fixture(scope="module")
def flask_wtf() -> None:
    pytest.importorskip("flask_wtf", reason="lorafleet[auth] is not installed")


@dataclass(frozen=True)
class Guarded:
    """A server with sign-in, and who and what is around it."""

    server: RunningMLflow
    told: FakePod
    """The pod that the controller knows."""
    pod: PodProcess
    """One that it does not know, with an engine."""
    audit: AuditLog

    def endpoint(self, user: str, headers: Mapping[str, str] | None = None) -> RegistryEndpoint:
        return RegistryEndpoint(self.server.url, user, PASSWORDS[user], caller=headers or {})

    def hand(self, user: str) -> RegistryHand:
        return RegistryHand(self.server, self.endpoint(user))

    def moves(self, name: str) -> list[AuditEntry]:
        return [entry for entry in self.audit.read(name) if entry.what == "champion"]

    def wait_live(self, made: Registered) -> None:
        registry = self.hand("reader").client
        wait_for(lambda: registry.get_model(made.name).aliases.get("live") == made.version, f"{made.label} live")


@pytest.fixture(scope="module")
def guarded(
    flask_wtf: None, s3: RunningS3, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    home, told = tmp_path_factory.mktemp("guarded"), FakePod(base_digest(tiny_model))
    (home / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{home}/auth.db\nadmin_username = root\n"
        "auth_cache_ttl_seconds = 60\n"  # Else each call costs a hash that is slow on purpose.
    )
    with told.running(), ExitStack() as running, pytest.MonkeyPatch.context() as patch:
        audit_url, port = f"s3://audit/{home.name}", free_port()
        environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["root"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
            "MLFLOW_TRACKING_USERNAME": "keeper",
            "MLFLOW_TRACKING_PASSWORD": PASSWORDS["keeper"],
            "LORAFLEET_HOME": str(home),
            "LORAFLEET_MLFLOW_URL": f"http://127.0.0.1:{port}",
            "LORAFLEET_PODS": told.url,
            "LORAFLEET_ADMIN_TOKEN": FAKE_TOKEN,
            "LORAFLEET_WEBHOOK_SECRET": FAKE_SECRET,
            "LORAFLEET_AUDIT_URL": audit_url,
            **s3.environment(),
        }
        server = start_mlflow(home / "mlflow", s3, running, "lorafleet", environment, port)
        root = RegistryClient(RegistryEndpoint(server.url, "root", PASSWORDS["root"]))
        for user, password in PASSWORDS.items():
            if user != "root":
                root.call("POST", "users/create", body={"username": user, "password": password})
        root.call("PATCH", "users/update-admin", body={"username": "keeper", "is_admin": True})
        told.registry = RegistryClient(RegistryEndpoint(server.url, "reader", PASSWORDS["reader"]))
        patch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["reader"])
        pod = start_pod(home / "pod", tiny_model, server, running, "--poll-interval", "1.0")
        pod.wait_ready()
        storage = Storage(S3Settings(s3.endpoint, s3.access_key, s3.secret_key))
        yield Guarded(server, told, pod, AuditLog(storage, audit_url))


def test_an_alias_moved_by_a_user_is_served_and_the_audit_log_names_the_user(
    guarded: Guarded, tiny_adapter: SourceFactory, name: str
) -> None:
    made = guarded.hand("ann").register(name, tiny_adapter(1))
    # Who signs in is who it was, whatever the request says besides.
    endpoint = guarded.endpoint("ann", {USER_HEADER: "mallory", AGENT_HEADER: CONTROLLER_AGENT})
    RegistryClient(endpoint).set_alias(name, "champion", made.version)
    guarded.wait_live(made)
    guarded.pod.wait_serving(name, made.version)
    assert guarded.pod.client.complete(name, "the cat", max_tokens=2).version == made.version
    (move,) = wait_for(lambda: guarded.moves(name), "the entry of the move")
    assert (move.who, move.how, move.after) == ("ann", "alias", str(made.version))


def test_a_user_who_may_not_is_refused_and_nothing_is_announced(
    guarded: Guarded, tiny_adapter: SourceFactory, name: str
) -> None:
    first, other = (guarded.hand("ann").register(item, tiny_adapter(1)) for item in (name, f"{name}-other"))

    def num_nudges() -> int:
        return [nudged for nudged, _ in guarded.told.nudges].count(name)

    wait_for(num_nudges, "the nudge of the new version")
    with pytest.raises(RegistryError, match=r"403: Permission denied.*ask its administrator") as refused:
        guarded.hand("bob").promote(first)
    assert PASSWORDS["bob"] not in str(refused.value)
    # A later change of another adapter that was seen through shows that this one was never told.
    guarded.hand("ann").promote(other)
    guarded.wait_live(other)
    assert guarded.hand("bob").client.get_model(name).aliases == {}
    assert guarded.audit.read(name) == []
    assert num_nudges() == 1


@pytest.mark.parametrize(("user", "password"), [(None, "unused"), ("ann", "not-hers"), ("nobody", "at-all")])
def test_who_does_not_sign_in_is_refused_with_the_way_in(guarded: Guarded, user: str | None, password: str) -> None:
    endpoint = RegistryEndpoint(guarded.server.url, user, password)
    with pytest.raises(RegistryError, match=r"401.*MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD") as refused:
        RegistryClient(endpoint).search_models()
    assert password not in f"{refused.value} {endpoint!r}"


def test_administrators_too_reach_neither_the_assistant_nor_folders(guarded: Guarded) -> None:
    with httpx.Client(base_url=guarded.server.url, auth=("root", PASSWORDS["root"]), trust_env=False) as http:
        assert http.get("/ajax-api/3.0/mlflow/assistant/config").status_code == 404
        body = {"name": f"local-{uuid4().hex}", "artifact_location": "file:///tmp/anywhere"}
        refused = http.post("/api/2.0/mlflow/experiments/create", json=body)
    assert refused.status_code == 400
    assert "no address of an object store" in refused.text


def test_the_command_line_signs_in_and_tells_a_wrong_password_in_one_line(guarded: Guarded, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LORAFLEET_HOME": str(tmp_path),
        "LORAFLEET_MLFLOW_URL": guarded.server.url,
        "MLFLOW_TRACKING_USERNAME": "bob",
    }
    command = [sys.executable, "-m", "lorafleet_cli.main", "adapters", "--json"]

    def run(password: str) -> subprocess.CompletedProcess[str]:
        given = {**environment, "MLFLOW_TRACKING_PASSWORD": password}
        return subprocess.run(command, env=given, capture_output=True, text=True, check=False)

    assert "adapters" in json.loads(run(PASSWORDS["bob"]).stdout)
    wrong = run("not-his-password")
    (line,) = wrong.stderr.splitlines()
    assert wrong.returncode == 1
    assert line.startswith("error: registry refused GET registered-models/search with 401")
    assert "MLFLOW_TRACKING_PASSWORD" in line
    assert "not-his-password" not in line


def test_no_secret_stands_in_a_log(guarded: Guarded) -> None:
    logs = guarded.server.server.log.read_text() + guarded.pod.log.read_text()
    assert "Created admin user 'root'" in logs
    assert [user for user, password in PASSWORDS.items() if password in logs] == []


@pytest.mark.parametrize("variable", ["MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_AUTH_ADMIN_PASSWORD"])
def test_any_variable_of_sign_in_turns_it_on(variable: str) -> None:
    assert is_wanted({variable: ""})
    assert not is_wanted({"MLFLOW_TRACKING_USERNAME": "ann"})


def test_a_controller_without_credentials_is_refused_with_what_to_set(tmp_path: Path) -> None:
    settings = PlatformSettings(home=tmp_path, work_dir=tmp_path, mlflow_url="http://h", mlflow_username="keeper")
    with pytest.raises(InvalidSetting, match=r"MLFLOW_AUTH_CONFIG_PATH.*MLFLOW_TRACKING_PASSWORD"):
        with_sign_in(Flask("registry"), settings)

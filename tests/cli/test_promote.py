"""`lorafleet promote`, `rollback`, `history` and `adapters` as a user and as a program sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.fleet import CanaryReport
from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.stack.ports import free_port
from tests.pipeline.registry.conftest import fleet  # noqa: F401
from tests.pipeline.registry.fleet import GATE_KEY, Fleet, digest_of, eventually

Run = Callable[..., "subprocess.CompletedProcess[str]"]


PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def run(fleet: Fleet) -> Run:  # noqa: F811
    settings = fleet.settings
    environment = {
        "LORAFLEET_HOME": str(settings.home),
        "LORAFLEET_MLFLOW_URL": settings.mlflow_url,
        "LORAFLEET_PODS": ",".join(settings.pods),
        "LORAFLEET_ADMIN_TOKEN": settings.admin_token,
        "LORAFLEET_GATE_KEY": GATE_KEY,
        "LORAFLEET_AUDIT_URL": settings.audit_url,
        "LORAFLEET_S3_ENDPOINT": settings.s3.endpoint or "",
        "AWS_ACCESS_KEY_ID": settings.s3.access_key_id or "",
        "AWS_SECRET_ACCESS_KEY": settings.s3.secret_access_key or "",
        "COLUMNS": "200",
    }

    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lorafleet_cli.main", *arguments]
        outer = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_VARIABLES}
        return subprocess.run(
            command, env={**outer, **environment, **more}, capture_output=True, text=True, check=False
        )

    return call


def document(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_registry_and_storage_of_this_machine_are_reached_past_a_proxy(fleet: Fleet, run: Run) -> None:  # noqa: F811
    name = fleet.adapter()
    fleet.set_gate(name, 1, GateStatus.PASSED)
    nobody = f"http://127.0.0.1:{free_port()}"
    proxies = {"http_proxy": nobody, "HTTP_PROXY": nobody, "https_proxy": nobody, "all_proxy": nobody}
    assert document(run("promote", name, "1", "--json", **proxies))["version"] == 1
    eventually(lambda: bool(fleet.audit(name)), "an entry of the promotion")
    shown = document(run("history", name, "--json", NO_PROXY="intranet.example", **proxies))
    assert "champion" in {entry["what"] for entry in shown["history"]}


def test_promotion_rollback_and_what_they_leave_behind(fleet: Fleet, run: Run) -> None:  # noqa: F811
    name = fleet.adapter()
    for version in (1, 2):
        fleet.set_gate(name, version, GateStatus.PASSED)
        promoted = document(run("promote", name, str(version), "--json"))
        assert (promoted["version"], promoted["alias"], promoted["digest"]) == (version, "champion", digest_of(version))
        eventually(lambda: fleet.aliases(name).get("live") == fleet.aliases(name)["champion"], "live")
    back = run("rollback", name)
    assert back.returncode == 0, back.stderr
    assert f"{name}: champion now points at version 1 (before: 2)." in back.stdout
    eventually(lambda: fleet.aliases(name) == {"champion": 1, "live": 1, "previous": 2}, "the rollback")
    eventually(lambda: len(fleet.audit(name)) == 6, "the audit log")
    told = document(run("history", name, "--json"))["history"]
    champions = [(item["before"], item["after"], item["how"]) for item in told if item["what"] == "champion"]
    assert champions == [(None, "1", "cli"), ("1", "2", "cli"), ("2", "1", "cli")]
    assert all(item["who"] for item in told if item["what"] == "champion")
    assert "champion" in run("history", name).stdout
    adapters = document(run("adapters", "--json"))["adapters"]
    (shown,) = [item for item in adapters if item["name"] == name]
    assert (shown["aliases"]["previous"], shown["serving"]) == (2, {fleet.pod.url: 1})
    assert name in run("adapters").stdout


def test_failed_gate_is_one_line_and_can_be_waived(fleet: Fleet, run: Run) -> None:  # noqa: F811
    name = fleet.adapter(versions=1)
    fleet.set_gate(name, 1, GateStatus.FAILED)
    refused = run("promote", name, "1")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: the gate of version 1 of {name} failed: min_lift")
    waived = run("promote", name, "1", "--waive", "only for the demo")
    assert waived.returncode == 0, waived.stderr
    assert "Taken by 1 pod(s)" in waived.stdout


def test_rollback_without_previous_is_one_line(fleet: Fleet, run: Run) -> None:  # noqa: F811
    name = fleet.adapter(versions=1)
    result = run("rollback", name)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert (
        line
        == f"error: {name} has no previous version: name one with --to, see `lorafleet history {name}` for versions"
    )


def test_rollback_loads_nothing_heavy_before_it_moves_the_alias(tmp_path: Path) -> None:
    code = (
        "import sys, atexit; from lorafleet_cli.main import main\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\nmain()"
    )
    # Nothing listens at the address, so that the command ends where it first asks the registry.
    environment = {**os.environ, "LORAFLEET_HOME": str(tmp_path), "LORAFLEET_MLFLOW_URL": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-c", code, "rollback", "--to", "2", "cook"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 1
    assert "127.0.0.1:9" in result.stderr
    _, _, loaded = result.stdout.partition("LOADED")
    heavy = {"mlflow", "boto3", "torch", "transformers", "pandas", "pydantic", "httpx", "rich.console"}
    assert "lorafleet_pipeline.registry.promotion" in loaded.split()
    assert heavy.isdisjoint(loaded.split())


def test_a_canary_begins_is_seen_changed_and_ended(fleet: Fleet, run: Run) -> None:  # noqa: F811
    name = fleet.adapter()
    for version in (1, 2):
        fleet.set_gate(name, version, GateStatus.PASSED)
    document(run("promote", name, "1", "--json"))
    begun = document(run("canary", name, "2", "--share", "0.25", "--json"))
    assert (begun["challenger"], begun["share"], begun["stopped"]) == (2, 0.25, None)
    assert fleet.aliases(name)["challenger"] == 2
    fleet.pod.canaries[name] = CanaryReport(2, 0.25, 7)
    fleet.pod.sync(name)
    shown = run("canary", name)
    assert f"{name}: version 2 answers 25% of the requests." in shown.stdout
    assert "7" in shown.stdout
    assert document(run("canary", name, "--share", "0.5", "--json"))["share"] == 0.5
    fleet.pod.canaries[name] = CanaryReport(2, 0.5, 9, "too slow")
    fleet.pod.sync(name)
    eventually(lambda: document(run("canary", name, "--json"))["share"] == 0, "the controller's end of it")
    fleet.pod.canaries.clear()
    ended = run("canary", name)
    assert "no canary" in ended.stdout
    assert "The last one was ended: version 2: too slow" in ended.stdout
    assert document(run("canary", name, "--end", "--json"))["share"] == 0


def test_a_canary_without_a_champion_or_challenger_is_refused(fleet: Fleet, run: Run) -> None:  # noqa: F811
    name = fleet.adapter()
    fleet.set_gate(name, 1, GateStatus.PASSED)
    for arguments, told in (
        ((name, "1"), "no champion"),
        ((name, "--share", "0.1"), "no challenger"),
        (("nobody", "1"), "there is no adapter 'nobody'"),
        ((name, "--share", "1.5"), "1.5"),
        ((name, "--end", "--share", "0.5"), "--end stands alone"),
    ):
        result = run("canary", *arguments)
        assert result.returncode != 0
        assert told in result.stderr

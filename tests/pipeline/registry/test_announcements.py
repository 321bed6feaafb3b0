from __future__ import annotations

from typing import Any

import pytest

from lorafleet_contract.aliases import Stage
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.registry.announcements import Announcement, RegistryCall, announcement_of, is_ordered
from lorafleet_pipeline.registry.change import AliasChange, StageChange, VersionDeletion

ALIAS = "/api/2.0/mlflow/registered-models/alias"
STAGE = "/ajax-api/2.0/mlflow/model-versions/transition-stage"
BY_ALIAS, BY_STAGE = Actor(None, How.ALIAS), Actor(None, How.STAGE)


def call(method: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> RegistryCall:
    return RegistryCall(method, path, {"name": "a", **body}, headers or {}, None, 1.0)


@pytest.mark.parametrize(
    ("made", "change"),
    [
        (call("POST", ALIAS, {"alias": "champion", "version": "3"}), AliasChange("champion", 3, BY_ALIAS, 1.0)),
        (call("DELETE", ALIAS, {"alias": "champion"}), AliasChange("champion", None, BY_ALIAS, 1.0)),
        (
            call("POST", STAGE, {"version": "3", "stage": "production", "archive_existing_versions": True}),
            StageChange(3, Stage.PRODUCTION, BY_STAGE, 1.0, archive_existing=True),
        ),
        (
            call("POST", f"/prefix{STAGE}", {"version": 3, "stage": "Archived"}),
            StageChange(3, Stage.ARCHIVED, BY_STAGE, 1.0),
        ),
        (call("DELETE", "/api/2.0/mlflow/model-versions/delete", {"version": "2"}), VersionDeletion(2, BY_ALIAS, 1.0)),
        (call("POST", "/api/2.0/mlflow/model-versions/set-tag", {"key": "gate.status", "value": "x"}), None),
        (call("POST", STAGE, {"version": "3", "stage": "Elsewhere"}), None),
        (call("POST", ALIAS, {"alias": "champion", "version": "three"}), None),
    ],
)
def test_write_is_announced(made: RegistryCall, change: object) -> None:
    assert announcement_of(made) == Announcement("a", change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "made",
    [
        call("GET", ALIAS, {"alias": "champion"}),
        call("POST", "/api/2.0/mlflow/runs/create", {}),
        call("POST", "/api/2.0/mlflow/model-versions/set-tag", {"key": "serve.state", "value": "ready"}),
        call("POST", "/api/2.0/mlflow/registered-models/set-tag", {"key": "controller.observed", "value": "{}"}),
        call("POST", ALIAS, {"alias": "live", "version": "3"}, {"x-lorafleet-agent": "controller"}),
        RegistryCall("POST", ALIAS, {"alias": "champion", "version": "1"}, {}, None, 1.0),
    ],
)
def test_reads_and_own_writes_are_no_announcements(made: RegistryCall) -> None:
    assert announcement_of(made) is None


def test_actor_is_named_by_headers_and_the_signed_in_user_comes_first() -> None:
    headers = {"x-lorafleet-agent": "cli", "x-lorafleet-user": "Zo%C3%AB"}
    made = call("POST", ALIAS, {"alias": "champion", "version": "3"}, headers)
    announced, signed_in = announcement_of(made), announcement_of(made._replace(user="eve"))
    assert announced is not None
    assert signed_in is not None
    assert isinstance(announced.change, AliasChange)
    assert isinstance(signed_in.change, AliasChange)
    assert announced.change.by == Actor("Zoë", How.CLI)
    assert signed_in.change.by == Actor("eve", How.CLI)


def test_only_calls_with_an_order_take_turns() -> None:
    assert is_ordered("POST", ALIAS)
    assert is_ordered("POST", STAGE)
    # Creating a version makes the server call itself: in a turn it could wait for itself.
    assert not is_ordered("POST", "/api/2.0/mlflow/model-versions/create")
    assert not is_ordered("GET", ALIAS)

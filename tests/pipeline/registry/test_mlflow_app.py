"""The controller inside a real MLflow server: every change is seen at once, whoever makes it."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Self

import httpx
import pytest
from flask import Flask
from werkzeug.serving import make_server

from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.actor import Actor, How, registry_as
from lorafleet_pipeline.registry.audit import AuditEntry
from lorafleet_pipeline.registry.mlflow_app import announce_writes
from tests.pipeline.registry.fake_pod import BASE_DIGEST
from tests.pipeline.registry.fleet import Fleet, eventually


def settled(fleet: Fleet, name: str, **aliases: int) -> None:
    eventually(lambda: fleet.aliases(name) == aliases, f"{aliases} of {name}")


def test_stage_production_sets_champion_and_live(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_stage(name, 2, "Production")
    settled(fleet, name, champion=2, live=2)
    eventually(lambda: fleet.tags(name, 2).get(Tag.SERVE_STATE) == "ready", "serve.state")
    assert Tag.SERVE_PROMOTED_AT in fleet.tags(name, 2)
    assert Tag.SERVE_STATE not in fleet.tags(name, 1)


def test_alias_is_mirrored_to_the_stage_and_back_to_none(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_alias(name, "champion", 1)
    settled(fleet, name, champion=1, live=1)
    fleet.set_alias(name, "champion", 3)
    settled(fleet, name, champion=3, live=3, previous=1)
    eventually(lambda: fleet.stages(name) == {1: "None", 2: "None", 3: "Production"}, "the mirrored stage")
    fleet.set_alias(name, "challenger", 2)
    eventually(lambda: fleet.stages(name)[2] == "Staging", "the challenger's stage")
    fleet.mlflow.delete_registered_model_alias(name, "challenger")
    eventually(lambda: fleet.stages(name)[2] == "None", "the stage of no challenger")


@pytest.mark.parametrize("prefix", ["api", "ajax-api"])
def test_both_interfaces_of_mlflow_are_seen(fleet: Fleet, prefix: str) -> None:
    name = fleet.adapter()
    base = f"{fleet.settings.mlflow_url}/{prefix}/2.0/mlflow"
    with httpx.Client() as http:
        body = {"name": name, "version": "2", "stage": "Staging", "archive_existing_versions": False}
        assert http.post(f"{base}/model-versions/transition-stage", json=body).status_code == 200
        eventually(lambda: fleet.aliases(name).get("challenger") == 2, "challenger")
        body = {"name": name, "alias": "champion", "version": "1"}
        assert http.post(f"{base}/registered-models/alias", json=body).status_code == 200
    eventually(lambda: fleet.aliases(name) == {"champion": 1, "live": 1, "challenger": 2}, "champion and live")


def test_of_several_versions_in_production_the_last_moved_wins(fleet: Fleet) -> None:
    name = fleet.adapter()
    for version in (3, 1, 2):
        fleet.set_stage(name, version, "Production")
    eventually(lambda: fleet.aliases(name).get("live") == 2, "the last version live")
    assert fleet.aliases(name)["champion"] == 2
    # Entering the stage that it is in already is a wish, too.
    fleet.set_stage(name, 3, "Production")
    eventually(lambda: fleet.aliases(name).get("live") == 3, "the version that was moved again")
    # Who leaves the stage gives way to who came before.
    fleet.set_stage(name, 3, "None")
    eventually(lambda: fleet.aliases(name).get("live") == 2, "the one before")


def test_archived_version_is_withdrawn(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_alias(name, "champion", 2)
    settled(fleet, name, champion=2, live=2)
    fleet.set_stage(name, 2, "Archived")
    settled(fleet, name, live=2)
    assert fleet.stages(name)[2] == "Archived"
    fleet.set_alias(name, "champion", 2)
    eventually(lambda: fleet.stages(name)[2] == "Production", "the version back in service")


def test_promotion_that_tidies_up_keeps_the_former_version_serving(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_stage(name, 1, "Production")
    settled(fleet, name, champion=1, live=1)
    fleet.pod.loading.add((name, 2))
    fleet.set_stage(name, 2, "Production", archive_existing=True)
    settled(fleet, name, champion=2, live=1)
    eventually(lambda: fleet.stages(name) == {1: "None", 2: "Production", 3: "None"}, "the former version kept")
    fleet.pod.loading.clear()
    fleet.pod.sync(name)
    settled(fleet, name, champion=2, live=2, previous=1)


def test_refused_champion_leaves_live_where_it_is(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_alias(name, "champion", 1)
    settled(fleet, name, champion=1, live=1)
    fleet.pod.refusals[name, 2] = "the signature of the gate report does not match"
    fleet.set_alias(name, "champion", 2)
    eventually(lambda: fleet.tags(name, 2).get(Tag.SERVE_STATE) == "refused", "serve.state")
    assert fleet.tags(name, 2)[Tag.SERVE_ERROR] == "the signature of the gate report does not match"
    assert fleet.aliases(name) == {"champion": 2, "live": 1}
    # The reason stays on the version after everyone has turned away from it.
    fleet.set_alias(name, "champion", 3)
    settled(fleet, name, champion=3, live=3, previous=1)
    assert fleet.tags(name, 2)[Tag.SERVE_STATE] == "refused"


def test_twenty_moves_end_at_the_last_and_all_are_in_the_audit_log(fleet: Fleet) -> None:
    name = fleet.adapter(versions=20)
    registry = registry_as(fleet.settings, Actor("ann", How.CLI))
    for version in range(1, 21):
        registry.set_alias(name, "champion", version)
    eventually(lambda: fleet.aliases(name).get("live") == 20, "the last version live")

    def moves() -> list[tuple[str | None, str | None]]:
        return [(entry.before, entry.after) for entry in fleet.audit(name) if entry.what == "champion"]

    eventually(lambda: len(moves()) == 20, "twenty entries")
    assert moves() == [(None if number == 1 else str(number - 1), str(number)) for number in range(1, 21)]
    assert {(entry.who, entry.how) for entry in fleet.audit(name) if entry.what == "champion"} == {("ann", How.CLI)}


def test_moves_at_the_same_time_end_where_the_registry_ended(fleet: Fleet) -> None:
    name = fleet.adapter(versions=4)

    def move(turn: int) -> None:
        registry = registry_as(fleet.settings, Actor(f"user-{turn}", How.CLI))
        registry.set_alias(name, "champion", 1 + turn % 4)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(move, range(16)))
    champion = fleet.aliases(name)["champion"]
    eventually(lambda: fleet.aliases(name).get("live") == champion, "live at the last champion")
    assert fleet.aliases(name)["champion"] == champion
    eventually(lambda: fleet.stages(name)[champion] == "Production", "one version in Production")
    assert [stage for stage in fleet.stages(name).values() if stage != "None"] == ["Production"]

    def told() -> list[AuditEntry]:
        return [entry for entry in fleet.audit(name) if entry.what == "champion"]

    eventually(lambda: [entry.after for entry in told()][-1:] == [str(champion)], "the audit log at the last champion")
    assert all(later.before == earlier.after for earlier, later in pairwise(told()))


def test_aliases_of_the_controller_cannot_be_moved_by_others(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_alias(name, "champion", 1)
    settled(fleet, name, champion=1, live=1)
    fleet.set_alias(name, "live", 3)
    settled(fleet, name, champion=1, live=1)
    eventually(lambda: any(entry.after == "3" for entry in fleet.audit(name)), "an entry of the attempt")


def test_deleted_champion_is_gone_and_live_goes_with_it(fleet: Fleet) -> None:
    name = fleet.adapter()
    fleet.set_alias(name, "champion", 2)
    settled(fleet, name, champion=2, live=2)
    fleet.mlflow.delete_model_version(name, "2")
    fleet.set_alias(name, "champion", 1)
    settled(fleet, name, champion=1, live=1)


def test_models_of_others_and_of_other_bases_are_left_alone(fleet: Fleet) -> None:
    other_base = fleet.adapter(base_digest="sha256:" + "c" * 64)
    fleet.set_stage(other_base, 1, "Production")
    eventually(lambda: fleet.aliases(other_base) == {"champion": 1}, "champion without live")
    foreign = f"{other_base}-foreign"
    fleet.mlflow.create_registered_model(foreign)
    fleet.mlflow.create_model_version(foreign, "s3://mlflow/foreign", await_creation_for=0)
    fleet.set_stage(foreign, 1, "Production")
    # A later change of an adapter that was seen through shows that the foreign one had its turn.
    name = fleet.adapter()
    fleet.set_stage(name, 1, "Production")
    settled(fleet, name, champion=1, live=1)
    assert fleet.aliases(foreign) == {}
    assert fleet.registry.get_model(foreign).tags == {}
    assert fleet.aliases(other_base) == {"champion": 1}
    assert fleet.pod.base_digest == BASE_DIGEST


def test_tag_of_a_gate_has_the_pods_look_again_and_one_of_serving_does_not(fleet: Fleet) -> None:
    name, other = fleet.adapter(versions=1), fleet.adapter(versions=1)

    def num_nudges() -> int:
        return [nudged for nudged, _ in fleet.pod.nudges].count(name)

    eventually(lambda: num_nudges() == 1, "the nudge of the new version")
    fleet.registry.set_version_tag(name, 1, Tag.GATE_STATUS, "waived")
    eventually(lambda: num_nudges() == 2, "the nudge of the gate's tag")
    fleet.registry.set_version_tag(name, 1, Tag.SERVE_STATE, "ready")
    # A later change of another adapter that was seen through shows that a nudge of the tag would have been there.
    fleet.set_alias(other, "champion", 1)
    settled(fleet, other, champion=1, live=1)
    assert num_nudges() == 2


def test_caller_that_stops_within_its_request_does_not_keep_others_waiting() -> None:
    app, announced = Flask("registry"), _Announced()
    announce_writes(app, announced)  # type: ignore[arg-type]

    path = "/api/2.0/mlflow/registered-models/alias"
    app.add_url_rule(path, view_func=dict, methods=["POST"])
    body = {"name": "adapter", "alias": "champion", "version": "1"}
    with _Server(app) as server, socket.create_connection(server.address) as stalled:
        stalled.sendall(f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{{".encode())
        eventually(lambda: server.num_open > 0, "the request under way")
        assert httpx.post(f"{server.url}{path}", json=body, timeout=10).is_success
    assert announced.names == ["adapter"]


class _Announced:
    """Stands where the controller does."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def announce(self, name: str, change: object) -> None:
        self.names.append(name)


class _Server:
    """A Flask app on threads of this process, one for each request."""

    def __init__(self, app: Flask) -> None:
        self.num_open = 0

        def counted(environ: Any, start_response: Any) -> Any:
            self.num_open += 1
            return app(environ, start_response)

        self._server = make_server("127.0.0.1", 0, counted, threaded=True)
        self.address = ("127.0.0.1", self._server.server_port)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        # Not its threads: the one of the stalled caller waits for a body that never comes.
        self._server.socket.close()

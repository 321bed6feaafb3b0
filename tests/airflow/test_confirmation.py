"""What follows a move of a champion: all pods serve it and answer, or it goes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from lorafleet_airflow.confirmation import roll_back
from lorafleet_airflow.exceptions import PromotionUnconfirmed, ServingDrifted
from lorafleet_airflow.operators.confirm import ConfirmPromotionOperator, ListPromotionsOperator, moved_adapters
from lorafleet_airflow.operators.promote import PromoteAdapterOperator
from lorafleet_airflow.operators.reconcile import ReconcileServingOperator
from lorafleet_contract.aliases import Alias
from lorafleet_contract.states import GateStatus
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.promotion import Promotion
from tests.airflow.conftest import TaskInstance
from tests.airflow.watched_fleet import AnsweringPod, WatchedFleet
from tests.pipeline.registry.fake_pod import ADMIN_TOKEN, WEBHOOK_SECRET

if TYPE_CHECKING:
    from tests.services import RunningMLflow

pytestmark = pytest.mark.usefixtures("called_by_hand")


@pytest.fixture
def fleet(mlflow_server: RunningMLflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedFleet]:
    pod = AnsweringPod()
    with pod.running():
        pod.follow(mlflow_server.url)
        values = {
            **mlflow_server.environment(),
            "LORAFLEET_HOME": str(tmp_path),
            "LORAFLEET_PODS": pod.url,
            "LORAFLEET_ADMIN_TOKEN": ADMIN_TOKEN,
            "LORAFLEET_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "LORAFLEET_GATE_KEY": "gate",
        }
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        yield WatchedFleet(mlflow_server, pod)


def _confirm(name: str, wait_s: float = 20.0) -> dict[str, Any]:
    result: dict[str, Any] = ConfirmPromotionOperator(task_id="confirm", adapter=name, wait_s=wait_s).execute({})
    return result


def test_a_champion_that_serves_is_confirmed_with_its_digest(fleet: WatchedFleet) -> None:
    name = fleet.adapter()
    fleet.promote(name, 1)
    found = _confirm(name)
    assert (found["outcome"], found["version"], found["pods"]) == ("confirmed", 1, [fleet.pod.url])
    assert found["digest"] == fleet.registry.get_version(name, 1).tags["lora.digest"]


def test_the_smoke_request_is_an_example_of_the_version_by_alias(fleet: WatchedFleet) -> None:
    name = fleet.adapter()
    fleet.promote(name, 1)
    _confirm(name)
    (question,) = [item for item in fleet.pod.asked if item["model"].startswith(name)]
    assert question["model"] == f"{name}@champion"
    assert question["variables"] == {"text": "a row"}


def test_confirming_again_changes_nothing(fleet: WatchedFleet) -> None:
    name = fleet.adapter()
    fleet.promote(name, 1)
    assert _confirm(name)["version"] == _confirm(name)["version"] == fleet.champion(name)


def test_a_refused_champion_goes_back_to_live_and_the_task_fails_with_the_reason(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.pod.refusals[name, 2] = "the weights are truncated"
    fleet.promote(name, 2)
    with pytest.raises(AirflowFailException, match=r"the weights are truncated.*rolled back to version 1"):
        _confirm(name)
    assert fleet.champion(name) == 1


def test_a_champion_that_does_not_answer_goes_back_to_the_one_before_live(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.PREVIOUS, 1)
    fleet.registry.set_alias(name, Alias.LIVE, 2)
    fleet.promote(name, 2)
    fleet.pod.failing[name] = 500
    with pytest.raises(AirflowFailException, match=r"smoke request.*rolled back to version 1"):
        _confirm(name)
    assert fleet.champion(name) == 1


def test_a_busy_pod_is_no_fault_of_the_version(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.promote(name, 2)
    fleet.pod.failing[name] = 503
    with pytest.raises(PromotionUnconfirmed):
        _confirm(name)
    assert fleet.champion(name) == 2


def test_a_pod_that_is_away_is_retried_and_moves_nothing(fleet: WatchedFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.promote(name, 2)
    monkeypatch.setenv("LORAFLEET_PODS", f"{fleet.pod.url},http://127.0.0.1:9")
    with pytest.raises(PromotionUnconfirmed, match=r"http://127\.0\.0\.1:9"):
        _confirm(name, wait_s=0.5)
    assert fleet.champion(name) == 2


def test_a_champion_that_pods_cannot_read_now_stays_and_is_confirmed_once_they_can(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.pod.unreadable[name, 2] = "cannot read s3://mlflow/weights: it does not answer"
    fleet.promote(name, 2)
    with pytest.raises(PromotionUnconfirmed, match=r"is hindered .*cannot read s3://mlflow/weights.*champion stays"):
        _confirm(name, wait_s=0.5)
    assert fleet.champion(name) == 2
    fleet.pod.unreadable.clear()
    fleet.pod.sync(name)
    assert _confirm(name)["version"] == 2


def test_a_pod_that_cannot_read_the_registry_is_no_fault_of_the_version(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    fleet.promote(name, 1)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.pod.registry, fleet.pod.registry_error = None, "the registry does not answer"
    fleet.promote(name, 2)
    with pytest.raises(PromotionUnconfirmed, match="the registry does not answer"):
        _confirm(name, wait_s=0.5)
    assert fleet.champion(name) == 2


def test_a_champion_that_is_not_taken_in_time_goes_back(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.pod.loading.add((name, 2))
    fleet.promote(name, 2)
    with pytest.raises(AirflowFailException, match=r"not served after 0.5 s.*rolled back to version 1"):
        _confirm(name, wait_s=0.5)


def test_a_faulty_champion_that_pods_never_took_goes_back_to_live_even_if_live_is_newer(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    fleet.registry.set_alias(name, Alias.LIVE, 2)
    fleet.promote(name, 1)
    assert roll_back(fleet.registry, name, faulty=1) == fleet.champion(name) == 2


def test_two_faulty_versions_do_not_send_the_champion_to_and_fro(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    for alias, version in ((Alias.LIVE, 2), (Alias.PREVIOUS, 1)):
        fleet.registry.set_alias(name, alias, version)
    fleet.promote(name, 2)
    assert roll_back(fleet.registry, name, faulty=2) == 1
    # The controller follows: what was live is previous now.
    for alias, version in ((Alias.LIVE, 1), (Alias.PREVIOUS, 2)):
        fleet.registry.set_alias(name, alias, version)
    assert roll_back(fleet.registry, name, faulty=1) is None
    assert fleet.champion(name) == 1


def test_a_previous_version_that_pods_refused_is_no_way_back(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2)
    for alias, version in ((Alias.LIVE, 2), (Alias.PREVIOUS, 1)):
        fleet.registry.set_alias(name, alias, version)
    fleet.registry.set_version_tag(name, 1, "serve.state", "refused")
    fleet.promote(name, 2)
    assert roll_back(fleet.registry, name, faulty=2) is None


def test_a_way_back_leads_to_no_version_whose_gate_failed(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=2, gate=GateStatus.FAILED)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.promote(name, 2)
    assert roll_back(fleet.registry, name, faulty=2) is None


def test_a_champion_that_moved_on_is_left_alone(fleet: WatchedFleet) -> None:
    name = fleet.adapter(versions=3)
    fleet.registry.set_alias(name, Alias.LIVE, 1)
    fleet.promote(name, 3)
    assert roll_back(fleet.registry, name, faulty=2) is None
    assert fleet.champion(name) == 3


def test_an_adapter_of_another_base_is_skipped(fleet: WatchedFleet) -> None:
    name = fleet.adapter(base="sha256:" + "c" * 64)
    fleet.promote(name, 1)
    with pytest.raises(AirflowSkipException, match="no pod serves its base"):
        _confirm(name)


def test_an_adapter_without_champion_is_skipped(fleet: WatchedFleet) -> None:
    with pytest.raises(AirflowSkipException, match="no champion"):
        _confirm(fleet.adapter())


class _Event:
    def __init__(self, adapter: str, version: int) -> None:
        self.extra = {"from_trigger": True, "payload": {"adapter": adapter, "version": version, "previous": None}}


def test_several_events_of_one_run_name_each_adapter_once() -> None:
    events = {"asset a": [_Event("a", 1), _Event("a", 2)], "asset b": [_Event("b", 1)]}
    assert moved_adapters(events) == ["a", "b"]
    listed = ListPromotionsOperator(task_id="moved", adapters=["z"])
    assert listed.execute({"triggering_asset_events": events}) == ["a", "b"]


def test_a_run_by_hand_takes_the_named_adapters_or_all_with_a_champion(fleet: WatchedFleet) -> None:
    assert ListPromotionsOperator(task_id="moved", adapters=["z", "a"]).execute({}) == ["a", "z"]
    name, idle = fleet.adapter(), fleet.adapter()
    fleet.promote(name, 1)
    everyone = ListPromotionsOperator(task_id="moved").execute({})
    assert name in everyone
    assert idle not in everyone


def test_a_version_whose_gate_failed_is_never_promoted_whatever_the_policy(
    fleet: WatchedFleet, context: dict[str, Any]
) -> None:
    name = fleet.adapter(gate=GateStatus.FAILED)
    for policy in ("auto", "manual"):
        operator = PromoteAdapterOperator(task_id="promote", adapter=name, version=1, policy=policy)
        with pytest.raises(AirflowFailException, match=r"lift 0\.01 is below 0\.05"):
            operator.execute(context)
    assert fleet.champion(name) is None


@pytest.mark.parametrize(
    ("policy", "tags", "champion", "comes_back"),
    [
        ("auto", {Tag.SERVE_PROMOTED_AT: "2026-01-01T00:00:00+00:00"}, 1, False),
        ("auto", {Tag.SERVE_STATE: "refused"}, 1, False),
        ("auto", {Tag.SERVE_STATE: "refused"}, None, False),
        ("approval", {Tag.SERVE_PROMOTED_AT: "2026-01-01T00:00:00+00:00"}, 1, True),
        ("auto", {Tag.SERVE_PROMOTED_AT: "2026-01-01T00:00:00+00:00"}, 3, False),
        # A version that nobody tried yet, one that pods could not read then, and a try of this very run's.
        ("auto", {}, 1, True),
        ("auto", {Tag.SERVE_STATE: "failed"}, 1, True),
        ("auto", {}, 3, True),
        ("auto", {Tag.SERVE_STATE: "refused"}, 2, True),
    ],
)
def test_a_version_that_was_tried_and_replaced_comes_back_by_a_person_alone(
    fleet: WatchedFleet,
    context: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    tags: dict[Tag, str],
    champion: int | None,
    comes_back: bool,
) -> None:
    name = fleet.adapter(versions=3)
    for tag, text in tags.items():
        fleet.registry.set_version_tag(name, 2, tag, text)
    if champion is not None:
        fleet.promote(name, champion)
    promoted: list[int] = []

    def promote(name: str, version: int, settings: Any, **options: Any) -> Promotion:
        promoted.append(version)
        return Promotion(name, version, "champion", "sha256:d", 1, (), 0.1)

    monkeypatch.setattr("lorafleet_pipeline.registry.promotion.promote", promote)
    operator = PromoteAdapterOperator(task_id="promote", adapter=name, version=2, policy=policy)
    if comes_back:
        operator.execute(context)
    else:
        with pytest.raises(AirflowSkipException, match=f"lorafleet promote {name} 2"):
            operator.execute(context)
    assert promoted == ([2] if comes_back else [])


def test_a_manual_promotion_says_how(fleet: WatchedFleet, context: dict[str, Any], task_instance: TaskInstance) -> None:
    name = fleet.adapter()
    operator = PromoteAdapterOperator(task_id="promote", adapter=name, version="1", policy="manual")
    with pytest.raises(AirflowSkipException, match=f"lorafleet promote {name} 1"):
        operator.execute(context)
    assert fleet.champion(name) is None
    assert task_instance.pushed["mlflow_version_url"].endswith(f"/#/models/{name}/versions/1")


def _reconcile(context: dict[str, Any], settle_s: float = 10.0) -> dict[str, int]:
    counts: dict[str, int] = ReconcileServingOperator(task_id="reconcile", settle_s=settle_s).execute(context)
    return counts


def test_a_pod_that_missed_a_change_is_told_and_follows(
    fleet: WatchedFleet, context: dict[str, Any], task_instance: TaskInstance
) -> None:
    name = fleet.adapter()
    fleet.registry.set_alias(name, Alias.CHAMPION, 1)
    assert _reconcile(context)["serving"] >= 1
    assert name in [nudged for nudged, _ in fleet.pod.nudges]
    (finding,) = [item for item in task_instance.pushed["report"] if item["adapter"] == name]
    assert finding["standing"] == "serving"


def test_drift_that_stays_fails_with_adapter_pod_and_reason(fleet: WatchedFleet, context: dict[str, Any]) -> None:
    name = fleet.adapter()
    fleet.pod.refusals[name, 1] = "forged gate"
    fleet.promote(name, 1)
    with pytest.raises(ServingDrifted, match=f"{name} version 1 is refused on {fleet.pod.url} .*forged gate"):
        _reconcile(context, settle_s=0.0)

"""Whole runs of an adapter's DAG through Airflow's task runner: templates, XComs, skips and failures.

Only the slow steps are stood in for; registry and promotion are real where a run reaches them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.state import DagRunState

from lorafleet_airflow.confirmation import Confirmation, Confirmer, Outcome
from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.evaluation.report import EvaluationReport
from lorafleet_pipeline.registry.promotion import Promotion
from tests.airflow.conftest import WriteSpec
from tests.airflow.watched_fleet import WatchedFleet
from tests.airflow_home import ROOT

if TYPE_CHECKING:
    from tests.services import RunningMLflow

Run = Callable[..., tuple[str, dict[str, str | None]]]


REPORT = EvaluationReport(
    adapter="any",
    digest="sha256:d",
    manifest_digest="sha256:m",
    status=GateStatus.PASSED,
    reason="",
    metric="rougeL",
    rows=50,
    base=0.1,
    candidate=0.4,
    champion=None,
    lift=0.3,
    interval=(0.2, 0.4),
    checks=(),
    created_at="2026-01-01T00:00:00+00:00",
)


class Report:
    """What a stood-in step returns."""

    mlflow_run_id = None

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        self.__dict__.update(facts)

    def to_json(self) -> dict[str, Any]:
        return self.facts


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the slow steps, and remembers what each was given."""
    made: dict[str, Any] = {}

    def put(name: str, report: object) -> None:
        def stand_in(spec: Any, run: Any, settings: Any, **options: Any) -> object:
            made[name] = {"spec": spec, "run": run, **options}
            return report

        monkeypatch.setattr(f"lorafleet_pipeline.{name}", stand_in)

    put("datasets.step.validate", Report(success=True))
    put("training.step.train", Report(num_steps=3))
    put("evaluation.step.evaluate", REPORT)
    made["put"] = put
    return made


@pytest.fixture
def fleet(
    mlflow_server: RunningMLflow, airflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> WatchedFleet:
    environment = {**mlflow_server.environment(), "LORAFLEET_HOME": str(tmp_path), "LORAFLEET_GATE_KEY": "gate"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LORAFLEET_PODS", raising=False)
    return WatchedFleet(mlflow_server)


@pytest.fixture
def run(specs: Path, write_spec: WriteSpec, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the DAG of a spec and gives the state of the run and of its tasks."""
    monkeypatch.setenv("LORAFLEET_ADAPTERS_DIR", str(specs))

    def start(name: str, conf: dict[str, Any] | None = None, **spec: Any) -> tuple[str, dict[str, str | None]]:
        write_spec(name, name=name, **spec)
        calls["put"]("registry.publish.register", Report(name=name, version=1, digest="sha256:d"))
        dag = DagBag(dag_folder=str(ROOT / "dags")).dags[f"adapter_{name}"]
        finished = dag.test(run_conf=conf)
        instances = {item.task_id: item for item in finished.get_task_instances()}
        link = instances["register"].xcom_pull(task_ids="register", key="_link_ModelVersionLink")
        assert instances["register"].state != "success" or str(link).endswith(f"/#/models/{name}/versions/1")
        return finished.state, {task_id: item.state for task_id, item in instances.items()}

    return start


def test_an_automatic_promotion_goes_through_all_steps(
    fleet: WatchedFleet, run: Run, calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted: list[tuple[str, int]] = []

    def promote(name: str, version: int, settings: Any, **options: Any) -> Promotion:
        promoted.append((name, version))
        assert options["actor"].who == f"airflow:adapter_{name}"
        return Promotion(name, version, "champion", "sha256:d", None, (), 0.1)

    monkeypatch.setattr("lorafleet_pipeline.registry.promotion.promote", promote)
    name = fleet.adapter()
    state, tasks = run(name, {"steps": 3, "force": True}, promotion={"policy": "auto"})
    assert (state, set(tasks.values())) == (DagRunState.SUCCESS, {"success"})
    assert promoted == [(name, 1)]
    assert calls["datasets.step.validate"]["spec"].training.steps == 3
    assert calls["training.step.train"]["force"] is True
    folders = {str(calls[step]["run"].path) for step in ("datasets.step.validate", "registry.publish.register")}
    assert len(folders) == 1


def test_a_manual_promotion_ends_well_and_moves_nothing(fleet: WatchedFleet, run: Run) -> None:
    name = fleet.adapter()
    state, tasks = run(name, promotion={"policy": "manual"})
    assert (state, tasks["register"], tasks["promote"]) == (DagRunState.SUCCESS, "success", "skipped")
    assert fleet.champion(name) is None


@pytest.mark.parametrize(("policy", "failing"), [("auto", "promote"), ("approval", "approve")])
def test_a_failed_gate_fails_the_run_after_the_version_is_registered(
    fleet: WatchedFleet, run: Run, policy: str, failing: str
) -> None:
    name = fleet.adapter(gate=GateStatus.FAILED)
    state, tasks = run(name, promotion={"policy": policy})
    assert state == DagRunState.FAILED
    assert (tasks["register"], tasks[failing]) == ("success", "failed")
    assert fleet.champion(name) is None


def test_a_dry_run_validates_and_skips_the_rest(fleet: WatchedFleet, run: Run, calls: dict[str, Any]) -> None:
    state, tasks = run(fleet.adapter(), {"dry_run": True})
    assert (state, tasks["validate"]) == (DagRunState.SUCCESS, "success")
    assert {tasks[name] for name in ("train", "evaluate", "register", "promote")} == {"skipped"}
    assert "training.step.train" not in calls


def test_a_champion_whose_name_spells_a_number_is_confirmed_under_that_name(
    fleet: WatchedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirmed: list[str] = []

    def confirm(self: Confirmer, adapter: str) -> Confirmation:
        confirmed.append(adapter)
        return Confirmation(adapter, Outcome.CONFIRMED)

    monkeypatch.setattr(Confirmer, "confirm", confirm)
    dag = DagBag(dag_folder=str(ROOT / "dags")).dags["promote_adapters"]
    finished = dag.test(run_conf={"adapters": ["2024"]})
    assert (finished.state, confirmed) == (DagRunState.SUCCESS, ["2024"])
    assert "adapter 2024" in [item.rendered_map_index for item in finished.get_task_instances()]

"""The DAG files: they parse, fast and without warnings, and Airflow can store what they make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

from tests.airflow_home import ROOT, prepare

HEAVY = (
    "torch",
    "mlflow",
    "great_expectations",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "boto3",
    "botocore",
    "pandas",
)
FILES = ("train_adapters.py", "promote_adapters.py", "reconcile_serving.py")


@pytest.fixture(scope="module")
def bag() -> DagBag:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAFLEET_ADAPTERS_DIR", raising=False)
        return DagBag(dag_folder=str(ROOT / "dags"))


def test_every_file_parses_without_a_warning(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert bag.captured_warnings == {}


def test_every_spec_of_the_repository_has_its_dag(bag: DagBag) -> None:
    adapters = {dag_id for dag_id in bag.dags if dag_id.startswith("adapter_")}
    assert len(adapters) == len(list((ROOT / "dags" / "adapters").glob("*.yaml")))
    assert {"promote_adapters", "reconcile_serving"} <= set(bag.dags)


def test_every_dag_says_what_it_is_and_whose(bag: DagBag) -> None:
    for dag in bag.dags.values():
        assert "lorafleet" in dag.tags
        assert dag.doc_md
        assert all(task.owner not in ("", "airflow") for task in dag.tasks)
        assert dag.max_active_runs == 1


def test_tasks_that_call_other_systems_are_retried(bag: DagBag) -> None:
    assert all(task.retries >= 1 for dag in bag.dags.values() for task in dag.tasks)


def test_serving_dags_run_without_being_switched_on(bag: DagBag) -> None:
    # A watcher lives only while a DAG that waits for it is not paused.
    assert bag.dags["promote_adapters"].is_paused_upon_creation is False
    assert bag.dags["reconcile_serving"].is_paused_upon_creation is False


def test_the_promotion_dag_watches_the_champion_of_every_spec(bag: DagBag) -> None:
    assets = bag.dags["promote_adapters"].timetable.asset_condition.objects
    specs = list((ROOT / "dags" / "adapters").glob("*.yaml"))
    assert len(assets) == len(specs)
    triggers = [watcher.trigger.serialize() for asset in assets for watcher in asset.watchers]
    # Equal arguments would make two assets share one trigger, and with it one memory.
    assert len({str(item) for item in triggers}) == len(specs)


def test_every_dag_survives_being_stored(bag: DagBag) -> None:
    for dag in bag.dags.values():
        stored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        assert set(stored.task_ids) == set(dag.task_ids)


@pytest.mark.parametrize("name", FILES)
def test_parsing_imports_nothing_heavy(name: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys, warnings\n"
        "import airflow.sdk\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        f"    runpy.run_path({str(ROOT / 'dags' / name)!r})\n"
        f"print(sorted(set({HEAVY!r}) & sys.modules.keys()), [str(item.message) for item in caught])\n"
    )
    environment = {**os.environ, "AIRFLOW_HOME": str(prepare())}
    environment.pop("LORAFLEET_ADAPTERS_DIR", None)
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert answer.stdout.splitlines()[-1] == "[] []"

"""A spec whose promotion needs a person's yes: Airflow asks, and the champion moves by the answer alone."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from lorafleet_contract.aliases import Alias
from lorafleet_pipeline.demo.airflow_client import AirflowClient
from lorafleet_pipeline.run_identity import dag_id
from lorafleet_pipeline.spec import parse_spec
from tests.e2e.conftest import RunningStack
from tests.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "asked"
DAG = dag_id(NAME)
_LIMIT_S = 300.0


def _spec(stack: RunningStack) -> str:
    document = {
        "name": NAME,
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "dataset": {"train": str(stack.data / "names.jsonl")},
        "prompt": "Name: {{ name }}\nKind:",
        "completion": " {{ kind }}\n",
        "training": {"steps": 4, "checkpoint_every": 4},
        "evaluation": {"metric": "accuracy", "max_new_tokens": 4, "limit": 20, "stop": ["\n"]},
        # Four steps teach little; whether it is any good is not asked here.
        "gate": {"min_lift": -1.0},
        "promotion": {"policy": "approval"},
    }
    return parse_spec(document, source=NAME).to_yaml()


@pytest.fixture(scope="module")
def airflow(stack: RunningStack) -> Iterator[AirflowClient]:
    """A client of an Airflow that has read the spec."""
    assert stack.settings.adapters_dir is not None
    (stack.settings.adapters_dir / f"{NAME}.yaml").write_text(_spec(stack))
    status = stack.status
    with AirflowClient(status.urls.airflow or "", status.airflow_user or "", status.airflow_password or "") as client:
        wait_for(lambda: client.has_dag(DAG), "Airflow to read the spec", _LIMIT_S)
        client.unpause(DAG)
        yield client


def _answer(stack: RunningStack, run_id: str, option: str) -> None:
    login = {"username": stack.status.airflow_user, "password": stack.status.airflow_password}
    with httpx.Client(base_url=stack.status.urls.airflow or "", trust_env=False) as person:
        token = person.post("/auth/token", json=login).raise_for_status().json()["access_token"]
        path = f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
        headers = {"Authorization": f"Bearer {token}"}
        person.patch(path, json={"chosen_options": [option]}, headers=headers).raise_for_status()


def _states(airflow: AirflowClient, run_id: str) -> dict[str, str | None]:
    return {task.task_id: task.state for task in airflow.run_state(DAG, run_id).tasks}


def _run(stack: RunningStack, airflow: AirflowClient, option: str) -> dict[str, str | None]:
    """Run the DAG, answer when asked, and return how the tasks ended."""
    run_id = airflow.trigger(DAG, {})
    asked = ("success", "'approve'", run_id)

    def is_asking() -> bool:
        assert not airflow.run_state(DAG, run_id).finished, "it ended without asking"
        # Faster than any person: Airflow takes an answer before its scheduler's next loop for a lost task.
        lines = scheduler_log.read_text().splitlines()
        has_ended = any(all(word in line for word in asked) for line in lines)
        return has_ended and _states(airflow, run_id)["approve"] == "awaiting_input"

    scheduler_log = stack.status.home / "logs" / "airflow-scheduler.log"
    wait_for(is_asking, "the question", _LIMIT_S)
    assert _states(airflow, run_id)["promote"] is None
    _answer(stack, run_id, option)
    wait_for(lambda: airflow.run_state(DAG, run_id).finished, "the end of the run", _LIMIT_S)
    assert airflow.run_state(DAG, run_id).state == "success"
    return _states(airflow, run_id)


def test_the_champion_moves_by_the_answer_alone(stack: RunningStack, airflow: AirflowClient) -> None:
    registry = stack.settings.registry()
    rejected = _run(stack, airflow, "Reject")
    assert rejected["promote"] == "skipped"
    assert Alias.CHAMPION not in registry.get_model(NAME).aliases
    # The second run finds the version of the first: nothing has changed but the answer.
    approved = _run(stack, airflow, "Approve")
    assert approved["promote"] == "success"
    assert registry.get_model(NAME).aliases[Alias.CHAMPION] == 1
    assert len(registry.search_versions(NAME)) == 1
    assert stack.client.complete(model=NAME, prompt="Name: KeyError\nKind:", max_tokens=1).adapter == f"{NAME}:1"

"""kill -9 of each process: the pod serves the same live version again without help, and the DAG run ends well."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress

import psutil
import pytest

from lorafleet_contract.tags import Tag
from lorafleet_pipeline.demo.airflow_client import AirflowClient, RunState, TaskState
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.run_identity import dag_id, run_key
from lorafleet_pipeline.training.job import TrainingJob
from lorafleet_pipeline.training.worker import StepFiles
from lorafleet_serving.client import PodClient
from lorafleet_serving.exceptions import ServingError
from tests.e2e.conftest import ADAPTER, CHECKPOINT_EVERY, STEPS, RunningStack
from tests.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(900)]


def _digest(client: PodClient) -> str | None:
    try:
        return client.complete(model=ADAPTER, prompt="Name: x\nKind:", max_tokens=1).digest
    except ServingError:
        return None


def _component_pid(stack: RunningStack, name: str) -> int | None:
    (entry,) = [entry for entry in stack.stack.status().components if entry.name == name]
    return entry.pid


def _child_pid(stack: RunningStack, role: str) -> int:
    """Process id of the pod's engine or fetcher, as its log told it last."""
    started = f"{role} process started, pid "
    lines = stack.stack.home.log("pod").read_text().splitlines()
    return int([line for line in lines if started in line][-1].rpartition(" ")[2])


def _pid(stack: RunningStack, victim: str) -> int | None:
    return _child_pid(stack, victim) if victim in {"engine", "fetcher"} else _component_pid(stack, victim)


@pytest.mark.parametrize("victim", ["pod", "engine", "fetcher", "mlflow", "s3"])
def test_the_pod_serves_the_same_version_after_a_kill(stack: RunningStack, victim: str) -> None:
    before = _digest(stack.client)
    assert before is not None
    pid = _pid(stack, victim)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)

    def recovered() -> bool:
        return _pid(stack, victim) not in {None, pid} and stack.stack.status().is_ready and stack.client.ready()

    wait_for(recovered, f"recovery from the death of {victim}", 120)
    assert wait_for(lambda: _digest(stack.client), "an answer") == before


def _trainings(folder: RunFolder) -> int:
    """Processes that train this run."""
    found = {
        process.info["pid"]: process.info["ppid"]
        for process in psutil.process_iter(["pid", "ppid", "cmdline"])
        if _trains(" ".join(process.info["cmdline"] or []), folder)
    }
    # What was forked bears the name of its parent until it runs its own program.
    return sum(parent not in found for parent in found.values())


def _trains(command: str, folder: RunFolder) -> bool:
    return "lorafleet_pipeline.training" in command and str(folder.path) in command


def _task_runner(stack: RunningStack) -> psutil.Process:
    """The process in which Airflow runs a task, once it is the only one: other DAGs have their hours."""

    def only_one() -> psutil.Process | None:
        found = []
        for child in psutil.Process(_component_pid(stack, "airflow-scheduler")).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if re.match(r"airflow worker -- [0-9a-f]{8}-", " ".join(child.cmdline())):
                    found.append(child)
        return found[0] if len(found) == 1 else None

    return wait_for(only_one, "the only task's process")


def test_a_retry_follows_the_training_that_its_killed_task_began(stack: RunningStack) -> None:
    status = stack.status
    before = stack.settings.registry().search_versions(ADAPTER)
    with AirflowClient(status.urls.airflow or "", status.airflow_user or "", status.airflow_password or "") as airflow:
        dag = dag_id(ADAPTER)
        run_id = airflow.trigger(dag, {"force": True, "steps": 10_000})
        folder = RunFolder.of(stack.settings.work_dir, ADAPTER, run_key(dag, run_id))
        job = TrainingJob(folder)

        def step() -> int:
            progress = job.progress()
            return 0 if progress is None else progress.step

        def train() -> TaskState:
            (task,) = [task for task in airflow.run_state(dag, run_id).tasks if task.task_id == "train"]
            return task

        wait_for(step, "the training under way", 180)
        pid = job.pid
        _task_runner(stack).kill()
        wait_for(lambda: (train().try_number, train().state) == (2, "running"), "the second try", 180)
        assert wait_for(lambda: job.pid, "the training") == pid
        assert _trainings(folder) == 1
        # Only who follows the training hears that it was cancelled.
        assert job.cancel()
        wait_for(lambda: airflow.run_state(dag, run_id).finished, "the end of the run", 180)
        assert train().state == "failed"
        assert "cancelled" in str(airflow.failure(dag, run_id, train()))
    assert _trainings(folder) == 0
    assert stack.settings.registry().search_versions(ADAPTER) == before


def test_a_run_survives_the_death_of_everything_around_it_and_of_its_training(stack: RunningStack) -> None:
    status = stack.stack.status()
    assert status.urls.airflow is not None
    serving = _digest(stack.client)
    before = {version.version for version in stack.settings.registry().search_versions(ADAPTER)}
    with AirflowClient(status.urls.airflow, status.airflow_user or "", status.airflow_password or "") as airflow:
        dag = dag_id(ADAPTER)
        run_id = airflow.trigger(dag, {"force": True, "steps": STEPS})
        folder = RunFolder.of(stack.settings.work_dir, ADAPTER, run_key(dag, run_id))
        job = TrainingJob(folder)

        def steps_done() -> int:
            assert _trainings(folder) <= 1
            progress = job.progress()
            return progress.step if progress is not None else 0

        wait_for(lambda: steps_done() >= 1, "the training is under way", 180)
        assert _trainings(folder) == 1
        for victim in ("fetcher", "engine", "pod", "mlflow", "s3"):
            pid = _pid(stack, victim)
            assert pid is not None, f"{victim} is away"
            os.kill(pid, signal.SIGKILL)
        assert steps_done() < STEPS, "all of them died while it trained"
        wait_for(lambda: steps_done() >= CHECKPOINT_EVERY, "the training to have a checkpoint", 180)
        assert steps_done() < STEPS, "it trains"
        pid = job.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        def ended() -> RunState | None:
            assert _trainings(folder) <= 1
            state = airflow.run_state(dag, run_id)
            return state if state.finished else None

        run = wait_for(ended, "the run ends", 300)
        assert f"resuming after step {CHECKPOINT_EVERY}" in StepFiles(folder.training).log.read_text()
        gate = folder.gate_report.read_text() if folder.gate_report.is_file() else "none"
        reasons = {task.task_id: airflow.failure(dag, run_id, task) for task in run.tasks if task.state == "failed"}
        assert run.state == "success", f"{run}, {reasons}, gate: {gate}"
        after = {version.version for version in stack.settings.registry().search_versions(ADAPTER)}
        (made,) = after - before
        digest = stack.settings.registry().get_version(ADAPTER, made).tags[Tag.LORA_DIGEST]
        assert digest == stack.demo["digest"], "the resumed training gives what the uninterrupted one gave"
    assert wait_for(lambda: _digest(stack.client), "an answer") == serving == digest

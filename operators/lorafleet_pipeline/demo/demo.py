"""The demo itself: stack, data, DAG run, figures, and the same prompt asked of base and champion."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lorafleet_contract.aliases import Alias
from lorafleet_contract.manifest import GATE_REPORT_FILE, MANIFEST_FILE, AdapterManifest
from lorafleet_contract.prompt import PromptBlock
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.demo.airflow_client import AirflowClient, RunState
from lorafleet_pipeline.demo.result import Address, Comparison, DemoResult
from lorafleet_pipeline.demo.source import DemoSource, find_spec, place_dataset
from lorafleet_pipeline.exceptions import DemoError
from lorafleet_pipeline.registry.publish import RegisteredVersion
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.run_identity import dag_id, run_key
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.stack import Stack
from lorafleet_pipeline.stack.status import OnProgress, StackStatus
from lorafleet_pipeline.storage import Storage
from lorafleet_serving.client import PodClient

_POLL_S = 1.0
_PARSE_LIMIT_S = 180.0
_PLAIN_PROMPT = "Hello"


class DemoScreen(Protocol):
    """Where the demo shows what it does."""

    @property
    def stack_progress(self) -> OnProgress:
        """Told of each change while the stack starts."""

    def step(self, text: str) -> None:
        """A new step begins."""

    def dag_run(self, run: RunState, training: str | None) -> None:
        """The DAG run as it is now, with the training's latest progress."""


@dataclass(frozen=True)
class DemoOptions:
    """How the demo runs."""

    source: DemoSource
    stack: StackOptions
    home: Path | None = None
    keep: bool = False
    steps: int | None = None
    """Training steps, instead of the spec's."""
    force: bool = False
    """Train again though neither spec nor data have changed."""


def run_demo(options: DemoOptions, screen: DemoScreen) -> DemoResult:
    """Run the demo.

    Raises:
        PipelineError: a component, the data or the DAG run failed; the message names it and the remedy.
    """
    began = time.monotonic()
    # What is wrong with the question itself is said before anything is started.
    spec = find_spec(options.source, options.stack.dags_folder)
    stack = Stack(options.home)
    was_up = stack.status().is_supervised
    screen.step("starting S3, MLflow, Airflow and the pod")
    status = stack.up(replace(options.stack, model=spec.base_model), screen.stack_progress)
    try:
        _check_base(stack, spec)
        settings = PlatformSettings.load(environ={}, home=stack.home.folder)
        screen.step("putting the dataset on S3")
        spec = place_dataset(options.source, spec, settings)
        with _airflow(status) as airflow:
            folder = _run_dag(spec, settings, airflow, screen, options)
        screen.step("asking base and champion over REST")
        version = champion_of(spec.name, folder, settings)
        return _result(version, spec, settings, status, seconds=time.monotonic() - began, kept=options.keep or was_up)
    finally:
        if not (options.keep or was_up):
            screen.step("stopping the stack")
            stack.down()


def _check_base(stack: Stack, spec: AdapterSpec) -> None:
    """A stack that was up may serve another base, whose pods would ignore the adapter."""
    served = StackOptions.read(stack.home.options).model
    if served != spec.base_model:
        raise DemoError(f"the pod serves {served}, {spec.name} needs {spec.base_model}: `lorafleet down` first")


def _airflow(status: StackStatus) -> AirflowClient:
    assert status.urls.airflow is not None, "the demo starts Airflow"
    assert status.airflow_user is not None
    assert status.airflow_password is not None
    return AirflowClient(status.urls.airflow, status.airflow_user, status.airflow_password)


def _run_dag(
    spec: AdapterSpec, settings: PlatformSettings, airflow: AirflowClient, screen: DemoScreen, options: DemoOptions
) -> RunFolder:
    """Trigger the adapter's DAG and follow it to its end; returns the run's folder."""
    dag = dag_id(spec.name)
    screen.step(f"waiting for Airflow to read the DAG {dag}")
    _await_dag(airflow, dag)
    airflow.unpause(dag)
    run_id = airflow.trigger(dag, {"force": options.force, "steps": options.steps})
    screen.step(f"running {dag}: validate, train, evaluate, register, promote")
    folder = RunFolder.of(settings.work_dir, spec.name, run_key(dag, run_id))
    while not (run := airflow.run_state(dag, run_id)).finished:
        screen.dag_run(run, _training_progress(folder))
        time.sleep(_POLL_S)
    screen.dag_run(run, None)
    if run.state != "success":
        raise DemoError(_cause(airflow, dag, run_id, run))
    return folder


def _await_dag(airflow: AirflowClient, dag: str) -> None:
    deadline = time.monotonic() + _PARSE_LIMIT_S
    while not airflow.has_dag(dag):
        if time.monotonic() > deadline:
            errors = airflow.import_errors()
            raise DemoError(
                f"Airflow has not read the DAG {dag} in {_PARSE_LIMIT_S:.0f} s: {errors or 'no import error'}"
            )
        time.sleep(_POLL_S)


def _training_progress(folder: RunFolder) -> str | None:
    from lorafleet_pipeline.training.job import TrainingJob

    progress = TrainingJob(folder).progress()
    return None if progress is None else str(progress)


def _cause(airflow: AirflowClient, dag: str, run_id: str, run: RunState) -> str:
    failed = [task for task in run.tasks if task.state == "failed"]
    if not failed:
        return f"run {run_id} of {dag} ended as {run.state}"
    reason = airflow.failure(dag, run_id, failed[0]) or f"it left no log, see {airflow.url}"
    return f"task {failed[0].task_id} of {dag} failed: {' '.join(reason.split())}"


def champion_of(name: str, folder: RunFolder, settings: PlatformSettings) -> int:
    """The version that a run ended at, which is the champion unless somebody preferred another before.

    Raises:
        DemoError: another is champion, or none.
    """
    registered = RegisteredVersion.from_json(json.loads(folder.registration.read_text())).version
    champion = settings.registry().get_model(name).aliases.get(Alias.CHAMPION)
    if champion != registered:
        raise DemoError(
            f"the run ended at version {registered} of {name}, and the champion is "
            f"{'none' if champion is None else f'version {champion}'}: see "
            f"`lorafleet history {name}`; `--force` trains a version that may be promoted anew"
        )
    return registered


def _result(
    version: int, spec: AdapterSpec, settings: PlatformSettings, status: StackStatus, *, seconds: float, kept: bool
) -> DemoResult:
    """The figures of a version, read from where MLflow keeps them."""
    registry = settings.registry()
    address = registry.get_artifact_address(spec.name, version)
    storage = Storage(settings.s3)
    report = json.loads(storage.read_bytes(f"{address}/{GATE_REPORT_FILE}"))
    manifest = AdapterManifest.from_json(json.loads(storage.read_bytes(f"{address}/{MANIFEST_FILE}")))
    return DemoResult(
        name=spec.name,
        metric=report["metric"],
        base=report["base"],
        adapter=report["candidate"],
        lift=report["lift"],
        interval=(report["interval"][0], report["interval"][1]),
        rows=report["rows"],
        version=version,
        digest=registry.get_version(spec.name, version).tags[Tag.LORA_DIGEST],
        uri=address,
        seconds=seconds,
        comparison=compare(manifest, settings),
        addresses=_addresses(status),
        stack_kept=kept,
    )


def compare(manifest: AdapterManifest, settings: PlatformSettings) -> Comparison:
    """Ask base and champion the same over REST."""
    block = manifest.prompt
    prompt, question = _question(block)
    asked: dict[str, Any] = {"max_tokens": block.max_new_tokens, "stop": list(block.stop)}
    with PodClient(settings.pods[0]) as client:
        base = client.complete(prompt=prompt, **asked)
        champion = client.complete(model=manifest.name, **question, **asked)
    return Comparison(prompt=prompt, base=base.text.strip(), champion=champion.text.strip())


def _question(block: PromptBlock) -> tuple[str, dict[str, Any]]:
    """An example of the version's own, rendered for the base and by its variables for the champion.

    Where every row looked like personal data, or was too long, no example travelled with the version.
    """
    if not block.examples:
        return _PLAIN_PROMPT, {"prompt": _PLAIN_PROMPT}
    variables = block.examples[0]
    return block.render(variables), {"variables": variables}


def _addresses(status: StackStatus) -> tuple[Address, ...]:
    login = f"user {status.airflow_user}, password {status.airflow_password}"
    urls = status.urls
    known = (
        ("Airflow", urls.airflow, login),
        ("MLflow", urls.mlflow, None),
        ("Pod", urls.pod and f"{urls.pod}/docs", None),
    )
    return tuple(Address(name, url, note) for name, url, note in known if url)

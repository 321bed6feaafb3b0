"""`lorafleet bench promotion`: from a change in the registry to the first token of the new version.

Measures against the running stack: alias moves and stage changes through MLflow's own client, of versions that no
pod has ever loaded, and rollbacks through the command line, process start included. Each first on the idle stack,
then back to back under closed-loop clients, who all send the same prompt, whose beginning the prefix cache knows: none
of their requests may fail, none may be answered by a version that was not yet moved to, or that was replaced before,
and each version was trained to say one text of its own, which is what its answers must be.

Under load a time is also told in steps of the engine, of which the batch takes so much longer. Of a rollback the pod
tells besides how long after it heard of the change it last gave the engine a request for the version that is left.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import httpx
import psutil
from rich.console import Console
from rich.progress import track

from lorafleet_contract.aliases import Alias
from lorafleet_contract.fleet import PodReport
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_serving.client import PodClient
from tests.benchmarks.closed_loop import ClosedLoop, Moves
from tests.benchmarks.fixed_answers import PROMPT, draw_answers
from tests.benchmarks.versions import MadeVersion, delete_versions, make_versions
from tests.serving.pod_process import metric_in

DEADLINE_S = 30.0
PROBE_PAUSE_S = 0.02
"""Between two looks at who serves: without it the looking itself would be the load."""
IDLE_PERCENT = 30.0
"""Use of all cores below which a stack with nothing to do counts as idle."""


@dataclass(frozen=True)
class PromotionPlan:
    """What is measured, and how often."""

    repeats: int = 25
    """Moves of each kind."""
    clients: int = 32
    """Of the closed loop."""


def measure(
    settings: PlatformSettings, name: str, plan: PromotionPlan, report: Callable[[str], None]
) -> dict[str, float]:
    """Run the benchmark and return its flat map of results; times in seconds."""
    registry = settings.registry()
    source = registry.get_model(name).aliases[Alias.CHAMPION]
    count = 2 * 2 * plan.repeats
    report(f"training {count} versions")
    answers = track(draw_answers(count, seed=1), "training", console=Console(stderr=True))
    made = make_versions(settings, name, source, answers)
    versions = iter(made)
    results: dict[str, float] = {}
    moves = Moves()
    said = {version.digest: version.answer for version in made}
    loop = ClosedLoop(settings.pods[0], name, num_clients=plan.clients, moves=moves, answers_of=said)
    with moves.to(registry.get_version(name, source).tags[Tag.LORA_DIGEST]):
        pass  # It is served already.
    fleet = _Fleet(settings, name, moves)
    try:
        results |= _told(_all_ways(fleet, plan.repeats, versions, report, _until_idle), "")
        with loop.running():
            results |= _told(_all_ways(fleet, plan.repeats, versions, report, lambda _: None), "_loaded")
    finally:
        registry.set_alias(name, Alias.CHAMPION, source)
        _until_live(settings, name, source)
        delete_versions(settings, name, made)
    for failure in sorted(set(loop.failures)):
        report(f"failed: {failure}")
    counts = {"failed": len(loop.failures), "mixed": loop.mixed, "garbled": loop.garbled}
    counts |= {"requests": loop.answered, "requests_to_new_versions": loop.num_known}
    return {**results, **{what: float(count) for what, count in counts.items()}}


def _told(seen: Mapping[str, list[float]], suffix: str) -> dict[str, float]:
    results = {}
    for what, values in seen.items():
        results[f"{what}_p50{suffix}"] = statistics.median(values)
        results[f"{what}_p95{suffix}"] = sorted(values)[max(0, math.ceil(0.95 * len(values)) - 1)]
        results[f"{what}_max{suffix}"] = max(values)
    return results


@dataclass(frozen=True)
class _Fleet:
    """The adapter that is moved, and the stack that serves it."""

    settings: PlatformSettings
    name: str
    moves: Moves


def _all_ways(
    fleet: _Fleet,
    repeats: int,
    versions: Iterator[MadeVersion],
    report: Callable[[str], None],
    before_each: Callable[[Callable[[str], None]], None],
) -> dict[str, list[float]]:
    from mlflow import MlflowClient

    client, name = MlflowClient(fleet.settings.mlflow_url), fleet.name
    seen: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        before_each(report)
        version = next(versions)
        move = partial(client.set_registered_model_alias, name, "champion", str(version.number))
        _note(seen, "alias", _until_served(fleet, version.digest, move))
        _until_live(fleet.settings, name, version.number)
        before_each(report)
        version = next(versions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Stages are deprecated in MLflow, and supported here.
            move = partial(client.transition_model_version_stage, name, str(version.number), "Production")
            _note(seen, "stage", _until_served(fleet, version.digest, move))
        _until_live(fleet.settings, name, version.number)
        before_each(report)
        _note(seen, "rollback", _rollback(fleet))
        seen["rollback_in_pod"].append(_longest_in_pods(fleet, version.number))
        report(", ".join(f"{what} {values[-1]:.2f}" for what, values in seen.items()))
    return seen


@dataclass(frozen=True)
class _Took:
    seconds: float
    steps: float
    """Of the first pod's engine."""


def _note(seen: dict[str, list[float]], way: str, took: _Took) -> None:
    seen[way].append(took.seconds)
    seen[f"{way}_steps"].append(took.steps)


def _longest_in_pods(fleet: _Fleet, left: int) -> float:
    """Seconds from a pod's hearing of a rollback until the name had moved there, and nobody was given what it left."""
    longest = 0.0
    for url in fleet.settings.pods:
        with PodClient(url, fleet.settings.admin_token, timeout_s=DEADLINE_S) as client:
            adapter = next(item for item in client.report().adapters if item.name == fleet.name)
        assert adapter.noticed_at is not None, "a pod that serves an adapter has heard of it"
        times = (adapter.moved_at, *(version.asked_at for version in adapter.versions if version.version == left))
        longest = max(longest, *(time - adapter.noticed_at for time in times if time is not None))
    return longest


def _rollback(fleet: _Fleet) -> _Took:
    settings, name = fleet.settings, fleet.name
    registry = settings.registry()
    target = registry.get_model(name).aliases[Alias.PREVIOUS]
    digest = registry.get_version(name, target).tags[Tag.LORA_DIGEST]
    command = [sys.executable, "-m", "lorafleet_cli.main", "rollback", name]
    environment = {**os.environ, "LORAFLEET_HOME": str(settings.home)}
    with ExitStack() as running:
        took = _until_served(
            fleet,
            digest,
            lambda: running.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)),
        )
    _until_live(settings, name, target)
    return took


def _until_served(fleet: _Fleet, digest: str, change: Callable[[], object]) -> _Took:
    """Time from the call of `change` to the first token that the version of `digest` gives on every pod.

    The pods are asked for their report until they name the version: asking them to generate all the while would
    take the processor from what is measured. The time ends with a token all the same.
    """
    settings, name = fleet.settings, fleet.name
    num_steps = _num_steps(settings.pods[0])
    start = time.monotonic()
    with ExitStack() as running:
        running.enter_context(fleet.moves.to(digest))
        clients = [
            running.enter_context(PodClient(url, settings.admin_token, timeout_s=DEADLINE_S)) for url in settings.pods
        ]
        change()
        for client in clients:
            while not _serves(client.report(), name, digest):
                if time.monotonic() - start > DEADLINE_S:
                    raise TimeoutError(f"{name} was not served as {digest} in {DEADLINE_S} s: see `lorafleet adapters`")
                time.sleep(PROBE_PAUSE_S)
            answer = client.complete(model=name, prompt=PROMPT, max_tokens=1)
            if answer.digest != digest:
                raise RuntimeError(f"pod {client.url} reports {digest} as served and answers by {answer.digest}")
        seconds = time.monotonic() - start
    return _Took(seconds, _num_steps(settings.pods[0]) - num_steps)


def _num_steps(url: str) -> float:
    return metric_in(
        httpx.get(f"{url}/metrics", timeout=DEADLINE_S, trust_env=False).text, "lorafleet_engine_steps_total"
    )


def _serves(report: PodReport, name: str, digest: str) -> bool:
    adapter = next((item for item in report.adapters if item.name == name), None)
    serving = None if adapter is None else next((v for v in adapter.versions if v.version == adapter.serving), None)
    return serving is not None and serving.digest == digest


def _until_idle(report: Callable[[str], None]) -> None:
    """Wait until the machine does little: what follows a promotion (an Airflow run, the audit log) has ended."""
    deadline = time.monotonic() + DEADLINE_S
    while (busy := psutil.cpu_percent(interval=1.0)) > IDLE_PERCENT:
        if time.monotonic() > deadline:
            report(f"not idle: {busy:.0f} % of all cores are busy, after {DEADLINE_S:.0f} s of waiting")
            return


def _until_live(settings: PlatformSettings, name: str, version: int) -> None:
    """Wait until the controller has moved `live`, so that the next change starts from rest."""
    registry = settings.registry()
    deadline = time.monotonic() + DEADLINE_S
    while registry.get_model(name).aliases.get(Alias.LIVE) != version:
        if time.monotonic() > deadline:
            raise TimeoutError(f"live of {name} did not reach version {version} within {DEADLINE_S} s")
        time.sleep(0.05)

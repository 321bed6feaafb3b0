"""`lorafleet bench promotion`: from a change in the registry to the first token of the new version.

Measures against the running stack: alias moves and stage changes through MLflow's own client, of versions that no
pod has ever loaded, and rollbacks through the command line, process start included. Each first on the idle stack,
then back to back under closed-loop clients: none of their requests may fail, and none may be answered by a version
that was not yet moved to, or that was replaced before.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import psutil

from lorafleet_contract.aliases import Alias
from lorafleet_contract.fleet import PodReport
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_serving.client import PodClient
from tests.benchmarks.closed_loop import ClosedLoop, Moves
from tests.benchmarks.versions import delete_versions, make_versions

DEADLINE_S = 30.0
PROBE_PAUSE_S = 0.02
"""Between two looks at who serves: without it the looking itself would be the load."""
IDLE_PERCENT = 30.0
"""Use of all cores below which a stack with nothing to do counts as idle."""


def measure(settings: PlatformSettings, name: str, repeats: int, report: Callable[[str], None]) -> dict[str, float]:
    """Run the benchmark and return its flat map of results; times in seconds."""
    registry = settings.registry()
    source = registry.get_model(name).aliases[Alias.CHAMPION]
    report(f"registering {4 * repeats} versions")
    made = make_versions(settings, name, source, 4 * repeats)
    versions = iter(made.items())
    results: dict[str, float] = {}
    moves = Moves()
    loop = ClosedLoop(settings.pods[0], name, num_clients=4, moves=moves)
    with moves.to(registry.get_version(name, source).tags[Tag.LORA_DIGEST]):
        pass  # It is served already.
    fleet = _Fleet(settings, name, moves)
    try:
        for suffix, under_load in (("", False), ("_loaded", True)):
            if under_load:
                with loop.running():
                    times = _all_ways(fleet, repeats, versions, report, lambda _: None)
            else:
                times = _all_ways(fleet, repeats, versions, report, _until_idle)
            for way, seconds in times.items():
                results[f"{way}_p50{suffix}"] = statistics.median(seconds)
                results[f"{way}_p95{suffix}"] = sorted(seconds)[max(0, round(0.95 * len(seconds)) - 1)]
                results[f"{way}_max{suffix}"] = max(seconds)
    finally:
        registry.set_alias(name, Alias.CHAMPION, source)
        _until_live(settings, name, source)
        delete_versions(settings, name, made)
    for failure in sorted(set(loop.failures)):
        report(f"failed: {failure}")
    counts = {"requests": loop.answered, "failed": len(loop.failures), "mixed": loop.mixed}
    return {**results, **{what: float(count) for what, count in counts.items()}}


@dataclass(frozen=True)
class _Fleet:
    """The adapter that is moved, and the stack that serves it."""

    settings: PlatformSettings
    name: str
    moves: Moves


def _all_ways(
    fleet: _Fleet,
    repeats: int,
    versions: Iterator[tuple[int, str]],
    report: Callable[[str], None],
    before_each: Callable[[Callable[[str], None]], None],
) -> dict[str, list[float]]:
    from mlflow import MlflowClient

    client, name = MlflowClient(fleet.settings.mlflow_url), fleet.name
    times: dict[str, list[float]] = {"alias": [], "stage": [], "rollback": []}
    for _ in range(repeats):
        before_each(report)
        version, digest = next(versions)
        move = partial(client.set_registered_model_alias, name, "champion", str(version))
        times["alias"].append(_until_served(fleet, digest, move))
        _until_live(fleet.settings, name, version)
        before_each(report)
        version, digest = next(versions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Stages are deprecated in MLflow, and supported here.
            move = partial(client.transition_model_version_stage, name, str(version), "Production")
            times["stage"].append(_until_served(fleet, digest, move))
        _until_live(fleet.settings, name, version)
        before_each(report)
        times["rollback"].append(_rollback(fleet))
        report(", ".join(f"{way} {seconds[-1]:.2f} s" for way, seconds in times.items()))
    return times


def _rollback(fleet: _Fleet) -> float:
    settings, name = fleet.settings, fleet.name
    registry = settings.registry()
    target = registry.get_model(name).aliases[Alias.PREVIOUS]
    digest = registry.get_version(name, target).tags[Tag.LORA_DIGEST]
    command = [sys.executable, "-m", "lorafleet_cli.main", "rollback", name]
    environment = {**os.environ, "LORAFLEET_HOME": str(settings.home)}
    with ExitStack() as running:
        seconds = _until_served(
            fleet,
            digest,
            lambda: running.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)),
        )
    _until_live(settings, name, target)
    return seconds


def _until_served(fleet: _Fleet, digest: str, change: Callable[[], object]) -> float:
    """Seconds from the call of `change` to the first token that the version of `digest` gives on every pod.

    The pods are asked for their report until they name the version: asking them to generate all the while would
    take the processor from what is measured. The time ends with a token all the same.
    """
    settings, name = fleet.settings, fleet.name
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
            answer = client.complete(model=name, prompt="def add(a, b):", max_tokens=1)
            if answer.digest != digest:
                raise RuntimeError(f"pod {client.url} reports {digest} as served and answers by {answer.digest}")
        return time.monotonic() - start


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

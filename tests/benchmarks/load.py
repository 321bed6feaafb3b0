"""Closed-loop users against a whole pod over HTTP: each asks, reads the whole stream, and asks again.

The pod runs with its own registry and S3 and 25 adapters that it loaded from there. Users choose adapters in four
ways, as the field's studies do: all the same one, each as likely, by Zipf's law, or each user its own.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lorafleet_contract.digest import base_digest
from tests.benchmarks.adapters import PROMPT
from tests.benchmarks.fleet import fleet_source, start_fleet, start_fleet_pod
from tests.benchmarks.streams import Timings, ask, open_session
from tests.serving.pod_process import PodProcess

NUM_TOKENS = 32
LONG_PROMPT_TOKENS = 2000
JUDGED = ("tokens_per_s", "ttft_p99_to_p50", "itl_p99_to_p50")

Report = Callable[[str], None]


class Choice(StrEnum):
    """How users choose their adapters."""

    IDENTICAL = "identical"
    UNIFORM = "uniform"
    ZIPF = "zipf"
    DISTINCT = "distinct"

    def pick(self, user: int, names: Sequence[str], chance: random.Random) -> str:
        """Adapter of a user's next request."""
        if self is Choice.IDENTICAL:
            return names[0]
        if self is Choice.DISTINCT:
            return names[user % len(names)]
        weights = [1.0 / (rank + 1) if self is Choice.ZIPF else 1.0 for rank in range(len(names))]
        return chance.choices(names, weights)[0]


@dataclass(frozen=True)
class LoadPlan:
    """Closed-loop users to measure."""

    users: tuple[int, ...] = (1, 32, 100)
    seconds: float = 20.0
    """Of each load; 0 measures none."""
    repeats: int = 1
    """How often each load is measured, all in turn."""


def measure_load(
    model: Path, adapters: Mapping[str, Path], plan: LoadPlan, folder: Path, report: Report
) -> dict[str, float]:
    """Every number of users with adapters drawn uniformly, and the most of them with each way of choosing.

    Figures are medians of the repeats; `least` and `most` of those that a load is judged by stand beside them, and
    errors are all that there were.
    """
    loads = [(number, Choice.UNIFORM) for number in plan.users]
    loads += [(max(plan.users), choice) for choice in Choice if choice is not Choice.UNIFORM]
    runs: dict[str, list[dict[str, float]]] = {}
    with _serving(model, adapters, folder, report) as pod:
        for _ in range(plan.repeats):
            for number, choice in loads:
                timings = asyncio.run(_closed_loop(pod.url, list(adapters), number, choice, plan.seconds))
                _store(runs, f"load.users_{number}.{choice}", timings, report)
            timings = asyncio.run(_beside_long_prompts(pod.url, list(adapters), plan.seconds))
            _store(runs, "load.long_prompt", timings, report)
    return {f"{name}.{key}": value for name, seen in runs.items() for key, value in summarize(seen).items()}


def summarize(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One load's figures from those of its repeats."""
    figures: dict[str, float] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run[key] for run in runs if key in run]
        figures[key] = sum(values) if key == "errors" else statistics.median(values)
        if key in JUDGED:
            figures |= {f"{key}.least": min(values), f"{key}.most": max(values)}
    return figures


def _store(runs: dict[str, list[dict[str, float]]], name: str, timings: Timings, report: Report) -> None:
    runs.setdefault(name, []).append(timings.summary())
    report(f"{name}: {timings.told()}")


@contextmanager
def _serving(model: Path, adapters: Mapping[str, Path], folder: Path, report: Report) -> Iterator[PodProcess]:
    with ExitStack() as running:
        report("starting S3, MLflow and a pod")
        registry = start_fleet(folder, running)
        digest = base_digest(model)
        for name, path in adapters.items():
            registry.promote(registry.register(name, fleet_source(model, path, digest)))
        yield start_fleet_pod(folder / "pod", model, registry, running, adapters)


async def _closed_loop(url: str, names: Sequence[str], num_users: int, choice: Choice, seconds: float) -> Timings:
    timings = Timings()
    async with open_session(url) as session:
        start = time.perf_counter()
        end = start + seconds

        async def user(number: int) -> None:
            chance = random.Random(number)
            while time.perf_counter() < end:
                await ask(session, choice.pick(number, names, chance), PROMPT, NUM_TOKENS, timings, end)

        await asyncio.gather(*(user(number) for number in range(num_users)))
        timings.seconds = seconds
    return timings


async def _beside_long_prompts(url: str, names: Sequence[str], seconds: float) -> Timings:
    """Eight running streams, and a long prompt that enters every two seconds."""
    timings, other = Timings(), Timings()
    async with open_session(url) as session:
        end = time.perf_counter() + seconds

        async def stream(number: int) -> None:
            while time.perf_counter() < end:
                await ask(session, names[number % len(names)], PROMPT, 400, timings, end)

        async def intruder() -> None:
            for number in range(int(seconds / 2)):
                await asyncio.sleep(2)
                prompt = [(7 * i + number) % 40000 + 100 for i in range(LONG_PROMPT_TOKENS)]
                await ask(session, names[number % len(names)], prompt, 1, other, end)

        await asyncio.gather(intruder(), *(stream(number) for number in range(8)))
    timings.seconds = seconds
    timings.errors += other.errors
    return timings

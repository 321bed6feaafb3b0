"""Closed-loop users against a whole pod over HTTP: each asks, reads the whole stream, and asks again.

The pod runs with its own registry and S3 and 25 adapters that it loaded from there. Users choose adapters in four
ways, as the field's studies do: all the same one, each as likely, by Zipf's law, or each user its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from tests.benchmarks.adapters import PROMPT, RANK
from tests.services import start_mlflow, start_s3
from tests.serving.pod_process import PodProcess, start_pod
from tests.serving.registered_adapter import AdapterSource, RegistryHand

NUM_TOKENS = 32
LONG_PROMPT_TOKENS = 2000
_LOAD_LIMIT_S = 300.0
_TOLD = ("tokens_per_s", "ttft_p50", "ttft_p99", "itl_p50", "itl_p99")

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


@dataclass
class Timings:
    """What the users of one load saw, in seconds."""

    ttft: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Mean and percentiles of each that was seen, throughput, and the number of errors."""
        figures = {"tokens_per_s": self.num_tokens / self.seconds, "requests": float(len(self.total))}
        figures["errors"] = float(len(self.errors))
        for name, values in (("ttft", self.ttft), ("itl", self.between_tokens), ("total", self.total)):
            if values:
                figures[f"{name}_mean"] = statistics.fmean(values)
                figures |= {f"{name}_p{percent}": _percentile(values, percent) for percent in (50, 90, 99)}
        return figures

    def told(self) -> str:
        """The figures that matter most, and what went wrong."""
        figures = self.summary()
        text = ", ".join(f"{key} {figures[key]:.3g}" for key in _TOLD if key in figures)
        return f"{text}, {len(self.errors)} errors {self.errors[:1] or ''}".rstrip()


def measure_load(
    model: Path, adapters: Mapping[str, Path], users: Sequence[int], seconds: float, folder: Path, report: Report
) -> dict[str, float]:
    """Every number of users with adapters drawn uniformly, and the most of them with each way of choosing."""
    results: dict[str, float] = {}
    with _serving(model, adapters, folder, report) as pod:
        loads = [(number, Choice.UNIFORM) for number in users]
        loads += [(max(users), choice) for choice in Choice if choice is not Choice.UNIFORM]
        for number, choice in loads:
            timings = asyncio.run(_closed_loop(pod.url, list(adapters), number, choice, seconds))
            _store(results, f"load.users_{number}.{choice}", timings, report)
        timings = asyncio.run(_beside_long_prompts(pod.url, list(adapters), seconds))
        _store(results, "load.long_prompt", timings, report)
    return results


def _store(results: dict[str, float], name: str, timings: Timings, report: Report) -> None:
    results |= {f"{name}.{key}": value for key, value in timings.summary().items()}
    report(f"{name}: {timings.told()}")


@contextmanager
def _serving(model: Path, adapters: Mapping[str, Path], folder: Path, report: Report) -> Iterator[PodProcess]:
    with ExitStack() as running:
        report("starting S3, MLflow and a pod")
        s3 = start_s3(_made(folder / "s3"), running)
        mlflow = start_mlflow(_made(folder / "mlflow"), s3, running)
        registry = RegistryHand(mlflow)
        for name, path in adapters.items():
            registry.promote(registry.register(name, AdapterSource(model, path, rank=RANK)))
        num_cores = str(len(os.sched_getaffinity(0)))
        pod = start_pod(folder / "pod", model, mlflow, running, "--num-threads", num_cores, "--max-waiting", "1024")
        for name in adapters:
            pod.wait_serving(name, 1, limit_s=_LOAD_LIMIT_S)
        yield pod


async def _closed_loop(url: str, names: Sequence[str], num_users: int, choice: Choice, seconds: float) -> Timings:
    timings = Timings()
    async with _session(url) as session:
        start = time.perf_counter()
        end = start + seconds

        async def user(number: int) -> None:
            chance = random.Random(number)
            while time.perf_counter() < end:
                await _ask(session, choice.pick(number, names, chance), PROMPT, NUM_TOKENS, timings, end)

        await asyncio.gather(*(user(number) for number in range(num_users)))
        timings.seconds = seconds
    return timings


async def _beside_long_prompts(url: str, names: Sequence[str], seconds: float) -> Timings:
    """Eight running streams, and a long prompt that enters every two seconds."""
    timings, other = Timings(), Timings()
    async with _session(url) as session:
        end = time.perf_counter() + seconds

        async def stream(number: int) -> None:
            while time.perf_counter() < end:
                await _ask(session, names[number % len(names)], PROMPT, 400, timings, end)

        async def intruder() -> None:
            for number in range(int(seconds / 2)):
                await asyncio.sleep(2)
                prompt = [(7 * i + number) % 40000 + 100 for i in range(LONG_PROMPT_TOKENS)]
                await _ask(session, names[number % len(names)], prompt, 1, other, end)

        await asyncio.gather(intruder(), *(stream(number) for number in range(8)))
    timings.seconds = seconds
    timings.errors += other.errors
    return timings


async def _ask(
    session: ClientSession, model: str, prompt: str | list[int], max_tokens: int, timings: Timings, end: float
) -> None:
    """One request; tokens that come after the end of the measurement do not count for throughput."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "min_tokens": max_tokens, "stream": True}
    asked = last = time.perf_counter()
    is_first = True
    try:
        async with session.post("/v1/completions", json=body) as response:
            if response.status != HTTPStatus.OK:
                timings.errors.append(f"{response.status} {(await response.read())[:200]!r}")
                return
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter()
                if line.startswith(b'data: {"error"'):
                    timings.errors.append(line[:200].decode())
                    return
                (timings.ttft if is_first else timings.between_tokens).append(now - last)
                is_first, last = False, now
                timings.num_tokens += now <= end
    except (ClientError, TimeoutError) as error:
        timings.errors.append(repr(error))
        return
    timings.total.append(last - asked)


def _session(url: str) -> ClientSession:
    # Light, for it takes its time from the two cores that the pod computes on.
    return ClientSession(url, timeout=ClientTimeout(total=120), connector=TCPConnector(limit=0))


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder

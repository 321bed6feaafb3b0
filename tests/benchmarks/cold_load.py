"""What a large adapter that comes slowly costs those who ask for others.

Users of resident adapters stream without pause; then one of 64 MB is promoted, whose bytes S3 gives at 1 MB a second,
and they go on; then it is quiet again. Only its last bytes' way into the engine could disturb them, or somebody who
waits for it in the wrong place.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lorafleet_contract.digest import WEIGHTS_FILE, base_digest
from tests.benchmarks.adapters import write_adapters
from tests.benchmarks.fleet import fleet_source, start_fleet_pod
from tests.benchmarks.streams import Timings, ask, open_session, percentile
from tests.serving.network_proxy import NetworkProxy
from tests.serving.pod_process import WEBHOOK_SECRET, PodProcess
from tests.serving.registered_adapter import AdapterSource, RegistryHand

NUM_USERS = 8
NUM_TOKENS = 64
LARGE_BYTES = 64_000_000
BYTES_PER_S = 1_000_000.0
_LARGE_RANK = 105
"""At which an adapter on all linear layers of SmolLM2-135M has that many bytes in bf16."""
_MOST_LOAD_S = 180.0
_LOOK_S = 0.5

Report = Callable[[str], None]


def measure_cold_load(
    model: Path,
    registry: RegistryHand,
    names: Sequence[str],
    folder: Path,
    repeats: int,
    report: Report,
) -> dict[str, float]:
    """Quiet, loading, quiet, so many times.

    The bar of a percentile is 1.2 times the quiet one and the difference between two quiet runs more; the figure
    `to_bar` is the percentile while it loads, as a share of that.

    Args:
        model: the base model.
        registry: where `names` are registered, and their champions set.
        names: adapters that users ask for.
        folder: for what is written.
        repeats: how many times, each with another large adapter.
        report: is told how it goes.
    """
    seen: list[_Round] = []
    with ExitStack() as running:
        network = running.enter_context(NetworkProxy(registry.mlflow.s3.endpoint))
        overrides = {"LORAFLEET_S3_ENDPOINT": network.url}
        flags = ("--dtype", "bfloat16", "--max-rank", str(_LARGE_RANK))
        report("starting a pod whose S3 is slow")
        pod = start_fleet_pod(folder / "pod-cold", model, registry, running, names, *flags, overrides=overrides)
        network.disturb(bytes_per_s=BYTES_PER_S)
        for number in range(repeats):
            source = _write_large(model, folder / f"large-{number}", number)
            seen.append(_measure_round(pod, registry, names, f"large-{number}", source, report))
    return {
        **_told([item.quiet_itl for item in seen], [item.loading_itl for item in seen], "cold.itl_p99"),
        **_told([item.quiet_ttft for item in seen], [item.loading_ttft for item in seen], "cold.ttft_p99"),
        "cold.load_s": max(item.load_s for item in seen),
        "cold.errors": float(sum(item.errors for item in seen)),
    }


@dataclass(frozen=True)
class _Round:
    """99th percentiles of the streams in seconds, before and after, and while the large adapter came."""

    quiet_itl: tuple[float, float]
    quiet_ttft: tuple[float, float]
    loading_itl: float
    loading_ttft: float
    load_s: float
    errors: int


def _measure_round(
    pod: PodProcess, registry: RegistryHand, names: Sequence[str], name: str, source: AdapterSource, report: Report
) -> _Round:
    registered = registry.register(name, source)
    load_s = LARGE_BYTES / BYTES_PER_S
    quiet = [asyncio.run(_stream(pod, names, lambda: False, load_s))]
    began = time.monotonic()
    registry.promote(registered)
    pod.client.nudge(name, WEBHOOK_SECRET)

    def is_served() -> bool:
        adapter = pod.adapter(name)
        return adapter is not None and adapter.serving == registered.version

    loading = asyncio.run(_stream(pod, names, is_served, _MOST_LOAD_S))
    took_s = time.monotonic() - began
    if not is_served():
        raise TimeoutError(f"{name} was not served within {_MOST_LOAD_S} s")
    quiet.append(asyncio.run(_stream(pod, names, lambda: False, load_s)))
    for label, timings in (("quiet", quiet[0]), (f"loading, {took_s:.0f} s", loading), ("quiet", quiet[1])):
        report(f"{label}: {timings.told()}")
    first, last = quiet
    return _Round(
        quiet_itl=(percentile(first.between_tokens, 99), percentile(last.between_tokens, 99)),
        quiet_ttft=(percentile(first.ttft, 99), percentile(last.ttft, 99)),
        loading_itl=percentile(loading.between_tokens, 99),
        loading_ttft=percentile(loading.ttft, 99),
        load_s=took_s,
        errors=sum(len(timings.errors) for timings in (*quiet, loading)),
    )


async def _stream(pod: PodProcess, names: Sequence[str], is_over: Callable[[], bool], limit_s: float) -> Timings:
    """Users who ask without pause, until it is over or the time has passed."""
    timings = Timings()
    begin = time.perf_counter()
    end = begin + limit_s
    done = asyncio.Event()

    async def user(number: int) -> None:
        chance = random.Random(number)
        while not done.is_set():
            prompt = [chance.randrange(100, 40000) for _ in range(NUM_TOKENS)]
            await ask(session, chance.choice(names), prompt, NUM_TOKENS, timings, end)

    async with open_session(pod.url) as session:
        users = [asyncio.create_task(user(number)) for number in range(NUM_USERS)]
        while time.perf_counter() < end and not await asyncio.to_thread(is_over):
            await asyncio.sleep(_LOOK_S)
        done.set()
        timings.seconds = time.perf_counter() - begin
        await asyncio.gather(*users)
    return timings


def _told(quiet: Sequence[tuple[float, float]], loading: Sequence[float], prefix: str) -> dict[str, float]:
    """Means over the rounds, and the worst round's share of its bar."""
    means = [sum(pair) / 2 for pair in quiet]
    spreads = [abs(first - last) for first, last in quiet]
    shares = [now / (1.2 * mean + spread) for now, mean, spread in zip(loading, means, spreads, strict=True)]
    figures: Mapping[str, Sequence[float]] = {"quiet": means, "spread": spreads, "loading": loading}
    told = {f"{prefix}.{name}": sum(values) / len(values) for name, values in figures.items()}
    return {**told, f"{prefix}.to_bar": sum(shares) / len(shares), f"{prefix}.to_bar_worst": max(shares)}


def _write_large(model: Path, folder: Path, seed: int) -> AdapterSource:
    written = write_adapters(model, folder, 1, rank=_LARGE_RANK)["adapter-0"]
    weights = written / WEIGHTS_FILE
    tensors = {name: ((1.0 + seed / 100) * tensor).to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    if weights.stat().st_size < LARGE_BYTES:
        raise ValueError(f"{weights} has {weights.stat().st_size} bytes, {LARGE_BYTES} are wanted: raise the rank")
    return fleet_source(model, written, base_digest(model), rank=_LARGE_RANK)

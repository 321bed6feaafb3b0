"""`lorafleet bench cache`: what it costs that not all adapters fit, against the case in which they do, in one run.

The cliff: 16 adapters ask for 8 device slots, and for 16. Requests come by a Poisson process at 70 % of what the pod
with 16 slots answers at most; each has 64 tokens and gets 64. The two pods stand side by side and get the same
requests by turns.

The cold load: see `cold_load`.

The fleet: far more adapters than host and device hold, by Zipf's law, against as many as the device holds. Users ask in
a closed loop. The budget for the engine's memory is what the same engine holds without adapters, and what its tiers may
hold of them.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from lorafleet_contract.digest import base_digest
from lorafleet_serving.adapters.tensor_header import read_header
from tests.benchmarks.adapters import write_many
from tests.benchmarks.cold_load import measure_cold_load
from tests.benchmarks.fleet import fleet_source, start_base_pod, start_fleet, start_fleet_pod
from tests.benchmarks.streams import Timings, ask, open_session
from tests.serving.registered_adapter import RegistryHand

NUM_ADAPTERS = 16
NUM_SLOTS = (16, 8)
NUM_TOKENS = 64
LOAD = 0.7
"""Of what the pod with all slots answers at most."""
ZIPF = {"uniform": 0.0, "zipf": 1.0}
"""Exponents of the ways in which requests choose their adapters."""
NUM_USERS = 32
FLEET_ZIPF = 1.1
FLEET_ROUNDS = 3
"""Each with both cases, one after the other."""
_BFLOAT16_BYTES = 2

Report = Callable[[str], None]


@dataclass(frozen=True)
class CachePlan:
    """What is measured, and for how long."""

    seconds: float = 300.0
    """Of each load of the cliff."""
    seeds: int = 3
    cold: int = 3
    """Large adapters that come while others stream."""
    fleet: int = 1000
    """Adapters of the fleet; 0 leaves it out."""
    fleet_host: int = 200
    """How many of them fit into host memory."""
    fleet_device: int = 64
    """How many of them fit on the device."""


def measure(model: Path, plan: CachePlan, report: Report) -> dict[str, float]:
    """Run the benchmark and return its flat map of results; times are in seconds."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_many(model, Path(folder) / "adapters", max(NUM_ADAPTERS, plan.fleet))
        names = list(adapters)
        size = _size(adapters[names[0]])
        with ExitStack() as running:
            report("starting S3 and MLflow")
            registry = start_fleet(Path(folder), running)
            _register(registry, model, adapters, names[:NUM_ADAPTERS], report)
            if plan.seeds:
                results |= _cliff(model, registry, names[:NUM_ADAPTERS], size, Path(folder), plan, report)
            if plan.cold:
                users = names[: NUM_SLOTS[-1]]
                results |= measure_cold_load(model, registry, users, Path(folder), plan.cold, report)
            if plan.fleet:
                _register(registry, model, adapters, names[NUM_ADAPTERS:], report)
                results |= _fleet(model, registry, names, size, Path(folder), plan, report)
    return results


def _cliff(
    model: Path, registry: RegistryHand, names: Sequence[str], size: int, folder: Path, plan: CachePlan, report: Report
) -> dict[str, float]:
    results: dict[str, float] = {}
    pooled = {slots: Timings() for slots in NUM_SLOTS}
    with ExitStack() as running:
        pods = {}
        for slots in NUM_SLOTS:
            report(f"starting a pod with {slots} device slots")
            flags = ("--adapter-device-bytes", str(slots * size), "--dtype", "bfloat16")
            pods[slots] = start_fleet_pod(folder / f"pod-{slots}", model, registry, running, names, *flags)
        for choice, exponent in ZIPF.items():
            most = asyncio.run(_closed_loop(pods[max(NUM_SLOTS)].url, names, exponent, max(40.0, plan.seconds / 5)))
            rate = LOAD * most.num_tokens / NUM_TOKENS / most.seconds
            results[f"{choice}.requests_per_s"] = rate
            report(f"{choice}: {most.told()}; {rate:.2f} requests/s from now on")
            seen = {slots: Timings() for slots in NUM_SLOTS}
            for seed in range(plan.seeds):
                for slots, pod in pods.items():
                    timings = asyncio.run(_open_loop(pod.url, names, exponent, rate, plan.seconds, seed))
                    report(f"{choice}, seed {seed}, {slots} slots: {timings.told()}")
                    seen[slots].add(timings)
                    pooled[slots].add(timings)
            results |= _told(seen, f"{choice}.")
        return results | _told(pooled)


def _told(seen: Mapping[int, Timings], prefix: str = "") -> dict[str, float]:
    results: dict[str, float] = {}
    for slots, timings in seen.items():
        figures = timings.summary()
        for name in ("ttft_p50", "ttft_p99", "itl_p50", "itl_p99", "total_p50", "errors"):
            results[f"{prefix}{name}.slots_{slots}"] = figures[name]
    few, all_of_them = min(seen), max(seen)
    for name in ("ttft_p50", "ttft_p99"):
        ratio = results[f"{prefix}{name}.slots_{few}"] / results[f"{prefix}{name}.slots_{all_of_them}"]
        results[f"{prefix}ratio.{name}"] = ratio
    return results


def _fleet(
    model: Path, registry: RegistryHand, names: Sequence[str], size: int, folder: Path, plan: CachePlan, report: Report
) -> dict[str, float]:
    device, host = plan.fleet_device * size, plan.fleet_host * size
    flags = ("--dtype", "bfloat16", "--adapter-device-bytes", str(device), "--adapter-host-bytes", str(host))
    with ExitStack() as running:
        report("starting a pod without adapters")
        pod = start_base_pod(folder / "pod-base", model, running, *flags)
        asyncio.run(_closed_loop(pod.url, [""], FLEET_ZIPF, plan.seconds / FLEET_ROUNDS))
        budget = _rss(pod.child_pids()["engine"]) + host + device
    with ExitStack() as running:
        report(f"starting a pod for {len(names)} adapters")
        pod = start_fleet_pod(folder / "pod-fleet", model, registry, running, names[-1:], *flags)
        seen = {"few": Timings(), "all": Timings()}
        misses = dict.fromkeys(seen, 0.0)
        for _ in range(FLEET_ROUNDS):
            for name, asked in (("few", names[: plan.fleet_device]), ("all", names)):
                before = pod.metric("lorafleet_tier_misses_total", tier="host")
                timings = asyncio.run(_closed_loop(pod.url, asked, FLEET_ZIPF, plan.seconds / FLEET_ROUNDS))
                misses[name] += pod.metric("lorafleet_tier_misses_total", tier="host") - before
                seen[name].add(timings)
                report(f"{name} of {len(names)} adapters: {timings.told()}")
        rss = _rss(pod.child_pids()["engine"])
        results = {"fleet.host_bytes": pod.metric("lorafleet_tier_bytes", tier="host"), "fleet.host_budget_bytes": host}
    for name, timings in seen.items():
        results[f"fleet.{name}.tokens_per_s"] = timings.summary()["tokens_per_s"]
        results[f"fleet.{name}.errors"] = float(len(timings.errors))
        results[f"fleet.{name}.misses"] = misses[name]
    results["fleet.ratio"] = results["fleet.all.tokens_per_s"] / results["fleet.few.tokens_per_s"]
    return {**results, "fleet.rss_bytes": rss, "fleet.rss_budget_bytes": budget, "fleet.rss_to_budget": rss / budget}


def _register(
    registry: RegistryHand, model: Path, adapters: Mapping[str, Path], names: Sequence[str], report: Report
) -> None:
    report(f"registering {len(names)} adapters")
    for name in names:
        registry.promote(registry.register(name, fleet_source(model, adapters[name], base_digest(model))))


async def _closed_loop(url: str, names: Sequence[str], exponent: float, seconds: float) -> Timings:
    """Users who ask at once again; the first quarter of the time is for the batch to fill."""
    start = time.perf_counter()
    begin, end = start + seconds / 4, start + seconds
    timings = Timings(seconds=end - begin)

    async def user(number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() < end:
            await ask(session, _pick(chance, names, exponent), _prompt(chance), NUM_TOKENS, timings, end, begin)

    async with open_session(url) as session:
        await asyncio.gather(*map(user, range(NUM_USERS)))
    return timings


async def _open_loop(
    url: str, names: Sequence[str], exponent: float, rate: float, seconds: float, seed: int
) -> Timings:
    """Requests that come whether those before are answered or not; all of them are waited for."""
    timings = Timings(seconds=seconds)
    chance = random.Random(seed)
    start = time.perf_counter()
    arrivals = list(accumulate(chance.expovariate(rate) for _ in range(int(2 * rate * seconds))))
    async with open_session(url) as session, asyncio.TaskGroup() as requests:
        for arrival in arrivals:
            if arrival > seconds:
                break
            await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
            name, prompt = _pick(chance, names, exponent), _prompt(chance)
            requests.create_task(ask(session, name, prompt, NUM_TOKENS, timings, start + seconds))
    return timings


def _pick(chance: random.Random, names: Sequence[str], exponent: float) -> str:
    return chance.choices(names, [(rank + 1) ** -exponent for rank in range(len(names))])[0]


def _prompt(chance: random.Random) -> list[int]:
    # No two have a beginning in common that the prefix cache would know.
    return [chance.randrange(100, 40000) for _ in range(NUM_TOKENS)]


def _size(folder: Path) -> int:
    header = read_header(folder / "adapter_model.safetensors")
    return _BFLOAT16_BYTES * sum(tensor.num_elements for tensor in header.values())


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return float(pages * 4096)

"""Half an hour of callers, promotions, evictions and faults at once: nothing hangs, leaks or is mixed up."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from lorafleet_contract.exceptions import RegistryError
from lorafleet_contract.tags import Tag
from tests.services import RunningMLflow
from tests.serving.network_proxy import NetworkProxy
from tests.serving.pod_process import ADMIN_TOKEN, WEBHOOK_SECRET, PodProcess, start_pod
from tests.serving.registered_adapter import AdapterSource, Registered, RegistryHand, with_report
from tests.serving.tiny_model import make_tiny_adapter

pytestmark = pytest.mark.soak

MINUTES = float(os.environ.get("LORAFLEET_SOAK_MINUTES", "30"))
NUM_CALLERS = 6
NUM_NAMES = 8
NUM_SOURCES = 24
"""Adapters of different weights, of which versions are made again and again."""
NUM_ON_HOST, NUM_ON_DEVICE = 6, 3
RANK = 32
PROMPTS = ("the cat", "the dog sat on", "a log and a mat")
ANSWER_LIMIT_S = 60.0
"""After which a request counts as stuck."""
EXPECTED = frozenset({200, 404, 409, 410, 503, 507})
"""What may come of a request to a pod whose processes are killed and whose adapters come and go."""
SETTLED_SHARE = 1 / 3
"""Of the time at the end, in which no process is killed: what grows then is a leak."""
MOST_GROWTH = 24 << 20
"""Of a process in that time."""
_SAMPLE_S = 5.0


@dataclass
class Run:
    """What is under way, and what was seen of it."""

    pod: PodProcess
    network: NetworkProxy
    registry: RegistryHand
    sources: list[AdapterSource]
    began: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    versions: dict[str, list[Registered]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[int] = field(default_factory=Counter)
    texts: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    """Answers to one prompt, by digest."""
    strangers: list[str] = field(default_factory=list)
    """Answers by a digest that was never a version of what was asked."""
    stuck: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    memory: dict[str, list[tuple[float, int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Time, process id and resident bytes of each process."""

    @property
    def is_settling(self) -> bool:
        """Whether no process is killed any more."""
        return time.monotonic() - self.began > (1 - SETTLED_SHARE) * 60 * MINUTES


def call(run: Run, chance: random.Random) -> None:
    """One request of a random kind; what comes of it is noted."""
    name = f"long-{chance.randrange(NUM_NAMES)}"
    prompt = chance.choice(PROMPTS)
    body = {"model": name, "prompt": prompt, "max_tokens": 12, "user": f"u{chance.randrange(50)}"}
    with httpx.Client(base_url=run.pod.url, timeout=ANSWER_LIMIT_S, trust_env=False) as http:
        if chance.random() < 0.2:
            with http.stream("POST", "/v1/completions", json={**body, "stream": True, "max_tokens": 100}) as response:
                run.statuses[response.status_code] += 1
                lines = response.iter_lines()
                for _ in range(chance.randrange(6)):
                    next(lines, None)
            return
        answer = http.post("/v1/completions", json=body)
    run.statuses[answer.status_code] += 1
    if answer.status_code == 200:
        digest = answer.headers["x-lorafleet-digest"]
        if digest not in {version.digest for version in run.versions[name]}:
            run.strangers.append(f"{name} was answered by {digest}")
        run.texts[digest, prompt].add(answer.json()["choices"][0]["text"])
    else:
        # Without what differs from one adapter to the next.
        reason = re.sub(r"[\w-]*\d[\w:.-]*", "_", answer.json()["error"]["message"])
        run.events[f"{answer.status_code}: {reason[:80]}"] += 1


def keep_calling(run: Run, seed: int) -> None:
    chance = random.Random(seed)
    while not run.done.is_set():
        try:
            call(run, chance)
        except httpx.TimeoutException as error:
            run.stuck.append(repr(error))
        except httpx.TransportError:
            run.events["connection broken"] += 1  # The front was killed.
            run.done.wait(0.2)


def move(run: Run, chance: random.Random) -> None:
    """Change something in the registry."""
    name = f"long-{chance.randrange(NUM_NAMES)}"
    known = run.versions[name]
    kind = chance.choice(("new", "new", "back", "bad", "canary", "shadow", "nudge"))
    run.events[f"registry: {kind}"] += 1
    if kind == "new":
        known.append(run.registry.register(name, chance.choice(run.sources)))
        run.registry.promote(known[-1])
    elif kind == "bad":
        bad = with_report(chance.choice(run.sources), status="failed", reason="planted")
        run.registry.promote(run.registry.register(name, bad))
    elif kind == "nudge":
        run.pod.client.nudge(name, WEBHOOK_SECRET)
    elif known:
        chosen = chance.choice(known)
        if kind == "back":
            run.registry.promote(chosen)
            run.registry.promote(chosen, "live")
        elif kind == "shadow":
            run.registry.promote(chosen, "shadow")
        else:
            run.registry.promote(chosen, "challenger")
            run.registry.client.set_model_tag(name, Tag.ROLLOUT_CANARY, chance.choice(("0", "0.3")))


def administer(run: Run, chance: random.Random) -> None:
    """Pin, evict or reload something."""
    action = chance.choice(("pin", "unpin", "evict", "reload"))
    body = {"adapter": f"long-{chance.randrange(NUM_NAMES)}"}
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    with httpx.Client(base_url=run.pod.url, timeout=ANSWER_LIMIT_S, trust_env=False) as http:
        answer = http.post(f"/v1/adapters/{action}", json=body, headers=headers)
    run.events[f"admin: {action} {answer.status_code}"] += 1
    assert answer.status_code in EXPECTED, answer.text
    if action == "pin":  # Or all would be pinned before long.
        with httpx.Client(base_url=run.pod.url, timeout=ANSWER_LIMIT_S, trust_env=False) as http:
            http.post("/v1/adapters/unpin", json=body, headers=headers)


def harm(run: Run, chance: random.Random) -> None:
    """Break something for a while."""
    kinds = ["slow", "silent", "resets", "breaks"]
    kinds += [] if run.is_settling else ["engine", "fetcher", "front"]
    kind = chance.choice(kinds)
    run.events[f"fault: {kind}"] += 1
    if kind == "front":
        run.pod.signal(signal.SIGKILL)
        run.pod.wait_exit()
        run.pod.start()
    elif kind in ("engine", "fetcher"):
        with suppress(ProcessLookupError):
            os.kill(run.pod.child_pids()[kind], signal.SIGKILL)
    else:
        faults = {
            "slow": lambda: run.network.disturb(bytes_per_s=20_000.0),
            "silent": lambda: run.network.disturb(is_silent=True),
            "resets": lambda: run.network.disturb(resets=True),
            "breaks": lambda: run.network.disturb(break_after=[chance.randrange(3_000) for _ in range(50)]),
        }
        faults[kind]()
        run.done.wait(chance.uniform(0.5, 4.0))
        run.network.heal()


def again_and_again(
    run: Run, act: Callable[[Run, random.Random], None], seed: int, pause_s: tuple[float, float]
) -> None:
    chance = random.Random(seed)
    while not run.done.wait(chance.uniform(*pause_s)):
        try:
            act(run, chance)
        except (httpx.TransportError, RegistryError) as error:
            run.events[f"{act.__name__}: {type(error).__name__}"] += 1


def watch_memory(run: Run) -> None:
    while not run.done.wait(_SAMPLE_S):
        for name, pid in {"front": run.pod.pid, **run.pod.child_pids()}.items():
            with suppress(psutil.NoSuchProcess):
                run.memory[name].append((time.monotonic() - run.began, pid, psutil.Process(pid).memory_info().rss))


@pytest.fixture
def run(tiny_model: Path, mlflow_server: RunningMLflow, registry: RegistryHand, tmp_path: Path) -> Iterator[Run]:
    folders = [make_tiny_adapter(tiny_model, tmp_path / f"source-{seed}", seed, RANK) for seed in range(NUM_SOURCES)]
    num_bytes = sum(path.stat().st_size for path in folders[0].glob("*.safetensors"))
    flags = ["--dtype", "float32", "--poll-interval", "1", "--silence-limit", "20"]
    flags += ["--adapter-host-bytes", str(NUM_ON_HOST * num_bytes), "--adapter-device-bytes"]
    flags += [str(NUM_ON_DEVICE * num_bytes)]
    with ExitStack() as running:
        network = running.enter_context(NetworkProxy(mlflow_server.s3.endpoint))
        overrides = {"LORAFLEET_S3_ENDPOINT": network.url}
        pod = start_pod(tmp_path / "pod", tiny_model, mlflow_server, running, *flags, overrides=overrides)
        pod.wait_ready()
        yield Run(pod, network, registry, [AdapterSource(tiny_model, folder, rank=RANK) for folder in folders])


def growth(samples: list[tuple[float, int, int]], since: float) -> tuple[float, float]:
    """Growth in bytes of the process that lived last, and its slope in bytes a minute, by least squares."""
    last = samples[-1][1]
    kept = [(at, rss) for at, pid, rss in samples if pid == last and at >= since]
    times, sizes = zip(*kept, strict=True)
    slope = 60 * statistics.linear_regression(times, sizes).slope
    return slope * (times[-1] - times[0]) / 60, slope


@pytest.mark.timeout(60 * MINUTES + 900)
def test_nothing_hangs_leaks_or_is_mixed_up(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(NUM_NAMES):
        first = run.registry.register(f"long-{number}", run.sources[number])
        run.versions[first.name].append(first)
        run.registry.promote(first)
        run.registry.promote(first, "live")
    with ThreadPoolExecutor(NUM_CALLERS + 4) as actors:
        acting = [actors.submit(keep_calling, run, seed) for seed in range(NUM_CALLERS)]
        acting.append(actors.submit(again_and_again, run, move, 101, (0.2, 2.0)))
        acting.append(actors.submit(again_and_again, run, administer, 102, (1.0, 4.0)))
        acting.append(actors.submit(again_and_again, run, harm, 103, (5.0, 20.0)))
        acting.append(actors.submit(watch_memory, run))
        run.done.wait(60 * MINUTES)
        run.done.set()
        for one in acting:
            one.result()
    run.network.heal()
    for name in run.versions:
        run.pod.client.nudge(name, WEBHOOK_SECRET)
    for series in ("lorafleet_requests_in_flight", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"):
        run.pod.wait_for(lambda series=series: run.pod.metric(series) == 0 or None, f"{series} to be 0")  # type: ignore[misc]
    since = (1 - SETTLED_SHARE) * 60 * MINUTES + 30
    grown = {name: growth(samples, since) for name, samples in run.memory.items()}
    with capsys.disabled():
        print(f"\n{sum(run.statuses.values())} requests: {dict(run.statuses)}")
        print(json.dumps(dict(sorted(run.events.items())), indent=2))
        for name, (num_bytes, slope) in grown.items():
            rss = run.memory[name][-1][2] / 2**20
            print(f"{name}: {rss:.0f} MiB, slope {slope / 2**20:+.3f} MiB/min ({num_bytes / 2**20:+.1f} MiB)")
    assert run.stuck == []
    assert run.strangers == []
    assert {key: texts for key, texts in run.texts.items() if len(texts) > 1} == {}
    assert set(run.statuses) <= EXPECTED
    assert run.statuses[200] > run.statuses.total() / 2
    assert {name: num_bytes for name, (num_bytes, _) in grown.items() if num_bytes > MOST_GROWTH} == {}

"""What the pod is like at the time of a scrape: nothing here can go stale, and no label set is left behind."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from lorafleet_contract.states import ServeState, Tier
from lorafleet_serving.adapters.tier_counts import LOAD_BUCKETS_S, LoadTimes, TierCounts
from lorafleet_serving.engine.messages import EngineStats
from lorafleet_serving.pod import Pod

ENGINE_LABEL = "0"
_COMMON = ("model_name", "engine")
_NO_STATS = EngineStats(0, 0, 0, 0, (), (), 0)
"""Of an engine that has told nothing yet."""


class PodGauges(Collector):
    """Reads the pod. Counters among them are of processes, and begin again with them, as Prometheus expects."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def collect(self) -> Iterator[Metric]:
        yield from self._engine()
        yield from self._tiers()
        yield from self._rollout()
        yield from self._canaries()
        yield from self._shadows()
        yield self._lora_requests()

    @property
    def _stats(self) -> EngineStats:
        return self._pod.engine.stats or _NO_STATS

    def _engine(self) -> Iterator[Metric]:
        engine, stats = self._pod.engine, self._stats
        waiting = engine.num_waiting if engine.stats is None else stats.num_waiting
        used = 1 - stats.num_free_blocks / stats.num_kv_blocks if stats.num_kv_blocks else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests in the running batch", stats.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for the batch", waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Used share of the KV cache, 0 to 1", used)
        yield self._gauge("vllm:gpu_cache_usage_perc", "The same under its older name", used)
        told = "Sequences preempted by the scheduler"
        yield self._counter("vllm:num_preemptions", told, stats.num_preemptions)
        yield self._counter("lorafleet_engine_steps", "Steps of the engine, each of the whole batch", stats.num_steps)
        told = "Turns on the device that ended for another adapter"
        yield self._counter("lorafleet_adapter_pauses", told, stats.num_adapter_pauses)
        told = "Requests that have not ended, as the front sees it"
        yield self._gauge("lorafleet_requests_in_flight", told, engine.num_in_flight)
        told = "Merged adapters that the engine holds"
        yield self._gauge("lorafleet_merged_adapters", told, self._pod.num_merged)

    def _tiers(self) -> Iterator[Metric]:
        pod, stats = self._pod, self._stats
        engine = pod.config.engine
        budgets = engine.adapter_device_bytes, engine.adapter_host_bytes, pod.config.fetcher.disk_bytes
        counts = dict(zip(Tier, (stats.device_counts, pod.host.counts, pod.fetcher.disk_counts), strict=True))
        numbers = len(stats.device_adapters), len(pod.engine.loaded), len(pod.fetcher.on_disk)
        sizes = stats.device_bytes, pod.host.used_bytes, pod.fetcher.disk_bytes
        yield _by_tier(GaugeMetricFamily, "adapters", "Adapters in a tier", numbers)
        yield _by_tier(GaugeMetricFamily, "bytes", "What they take", sizes)
        yield _by_tier(GaugeMetricFamily, "budget_bytes", "What they may take", budgets)
        for name, told in _COUNTED.items():
            values = [getattr(counts[tier], name) for tier in Tier]
            yield _by_tier(CounterMetricFamily, name, told, values)
        yield _load_seconds(counts)

    def _rollout(self) -> Iterator[Metric]:
        states = Counter(version.state for version in self._pod.catalog.versions())
        family = GaugeMetricFamily("lorafleet_versions", "Versions that an alias asks for, by state", labels=("state",))
        for state in ServeState:
            family.add_metric((state.value,), states[state])
        yield family
        following = self._pod.following
        told = "Seconds since the registry was last read, or since the start; 0 where there is none"
        yield self._gauge("lorafleet_registry_lag_seconds", told, 0.0 if following is None else following.lag_s)

    def _canaries(self) -> Iterator[Metric]:
        told = {
            "share": "Share of an adapter's requests that its challenger is to answer",
            "stopped": "1 where the pod has stopped asking the challenger",
            "answers": "Answers of the challenger that came to an end",
        }
        canaries = ((item.name, item.canary) for item in self._pod.catalog.adapters.values() if item.canary is not None)
        rows = {
            (adapter, str(canary.version)): (canary.share, canary.stopped is not None, canary.num_answers)
            for adapter, canary in canaries
        }
        return self._by_version("lorafleet_canary", told, rows)

    def _shadows(self) -> Iterator[Metric]:
        told = {
            "answers": "Requests that champion and shadow both answered",
            "same": "Those that both answered alike, token for token",
            "skipped": "Requests of the champion that were not mirrored for lack of room or time",
            "doubtful": "1 where something speaks against the shadow",
        }
        shadows = ((item.name, item.shadow) for item in self._pod.catalog.adapters.values() if item.shadow is not None)
        rows = {
            (adapter, str(shadow.version)): (
                shadow.num_answers,
                shadow.num_same,
                shadow.num_skipped,
                shadow.doubt is not None,
            )
            for adapter, shadow in shadows
        }
        return self._by_version("lorafleet_shadow", told, rows)

    def _by_version(
        self, prefix: str, told: Mapping[str, str], rows: Mapping[tuple[str, str], Sequence[float]]
    ) -> Iterator[Metric]:
        """One family for each thing that is told, of as many adapters as may have labels.

        `rows` are by adapter and version, each with the values in the order of `told`.
        """
        for number, (name, text) in enumerate(told.items()):
            family = GaugeMetricFamily(f"{prefix}_{name}", text, labels=("adapter", "version"))
            for labels, values in islice(rows.items(), self._pod.config.metric_adapters):
                family.add_metric(labels, values[number])
            yield family

    def _lora_requests(self) -> Metric:
        # Names of what is resident, not only of what runs: routers prefer a pod that needs no loading.
        catalog, on_device = self._pod.catalog, frozenset(self._stats.device_adapters)
        resident = {item.name for item in catalog.versions() if item.digest in on_device}
        busy = {item.name for item in catalog.versions() if self._pod.host.num_leases(item.digest)}
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters on the device, and those with requests that are not",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        names = ",".join(sorted(resident)), ",".join(sorted(busy - resident))
        family.add_metric((str(len(catalog.adapters) + len(catalog.by_hand)), *names), time.time())
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_COMMON)
        family.add_metric((self._pod.config.base_id, ENGINE_LABEL), value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_COMMON)
        family.add_metric((self._pod.config.base_id, ENGINE_LABEL), value)
        return family


_COUNTED = {
    "hits": "Times that an adapter was where it was needed",
    "misses": "Times that it had to be brought there",
    "evictions": "Adapters that left because another needed the room",
    "waits_for_room": "Loads that waited because all that was there was in use",
}
"""What is counted of each tier."""


def _by_tier(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, values: Sequence[float]
) -> Metric:
    family = kind(f"lorafleet_tier_{name}", text, labels=("tier",))
    for tier, value in zip(Tier, values, strict=True):
        family.add_metric((tier.value,), value)
    return family


def _load_seconds(counts: Mapping[Tier, TierCounts]) -> Metric:
    told = "Time to bring an adapter into a tier, without waiting for room"
    family = HistogramMetricFamily("lorafleet_adapter_load_seconds", told, labels=("source", "tier"))
    for tier, found in counts.items():
        for source, times in found.loads.items():
            family.add_metric((source, tier.value), _buckets(times), times.total_s)
    return family


def _buckets(times: LoadTimes) -> list[tuple[str, float]]:
    limits = [*map(str, LOAD_BUCKETS_S), "+Inf"]
    return list(zip(limits, accumulate(times.counts), strict=True))

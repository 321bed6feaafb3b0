"""Prometheus series of the pod: vLLM's names where one exists, so that routers and dashboards just work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.pod import Pod

MAX_ADAPTER_LABELS = 200
"""Adapters beyond these many share one label."""
OTHER_ADAPTERS = "_other"

_ENGINE = "0"
_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_E2E_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60)
_COMMON = ("model_name", "engine")


class PodMetrics:
    """Counters and histograms that requests move, and gauges read from the pod when they are scraped."""

    def __init__(self, pod: Pod) -> None:
        self._common = (pod.config.base_id, _ENGINE)
        self._adapters: set[str] = set()
        self._registry = registry = CollectorRegistry()
        registry.register(_PodGauges(pod))
        self._ttft = Histogram(
            "vllm:time_to_first_token_seconds",
            "Time from request to first token",
            _COMMON,
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self._e2e = Histogram(
            "vllm:e2e_request_latency_seconds",
            "Time from request to last token",
            _COMMON,
            buckets=_E2E_BUCKETS,
            registry=registry,
        )
        self._prompt = Counter("vllm:prompt_tokens", "Prompt tokens", _COMMON, registry=registry)
        self._generated = Counter("vllm:generation_tokens", "Generated tokens", _COMMON, registry=registry)
        labels = (*_COMMON, "finished_reason")
        self._success = Counter("vllm:request_success", "Requests that ended well", labels, registry=registry)
        self._by_adapter = Counter("lorafleet_adapter_requests", "Requests by adapter", ("adapter",), registry=registry)
        self._tokens_by_adapter = Counter(
            "lorafleet_adapter_generation_tokens", "Generated tokens by adapter", ("adapter",), registry=registry
        )

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    def first_token(self, seconds: float) -> None:
        """A request got its first token."""
        self._ttft.labels(*self._common).observe(seconds)

    def finished(self, seconds: float, reason: FinishReason) -> None:
        """A request ended well."""
        self._e2e.labels(*self._common).observe(seconds)
        finished = "length" if reason is FinishReason.LENGTH else "stop"
        self._success.labels(*self._common, finished).inc()

    def closed(self, adapter: str, num_prompt: int, num_generated: int) -> None:
        """A request is over, however it ended. `adapter` is a name, empty for the base."""
        self._prompt.labels(*self._common).inc(num_prompt)
        self._generated.labels(*self._common).inc(num_generated)
        label = self._label(adapter)
        self._by_adapter.labels(label).inc()
        self._tokens_by_adapter.labels(label).inc(num_generated)

    def _label(self, adapter: str) -> str:
        if adapter in self._adapters or len(self._adapters) < MAX_ADAPTER_LABELS:
            self._adapters.add(adapter)
            return adapter
        return OTHER_ADAPTERS


class _PodGauges(Collector):
    """Gauges of the present, read at each scrape: none can go stale, no label set is left behind."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def collect(self) -> Iterator[Metric]:
        stats = self._pod.engine.stats
        running = stats.num_running if stats is not None else 0
        waiting = stats.num_waiting if stats is not None else self._pod.engine.num_waiting
        used = 1 - stats.num_free_blocks / stats.num_kv_blocks if stats is not None and stats.num_kv_blocks else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests in the running batch", running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for the batch", waiting)
        in_flight = self._pod.engine.num_in_flight
        yield self._gauge(
            "lorafleet_requests_in_flight", "Requests that have not ended, as the front sees it", in_flight
        )
        yield self._gauge("vllm:kv_cache_usage_perc", "Used share of the KV cache, 0 to 1", used)
        yield self._preemptions(stats.num_preemptions if stats is not None else 0)
        pauses = stats.num_adapter_pauses if stats is not None else 0
        yield self._counter("lorafleet_adapter_pauses", "Turns on the device that ended for another adapter", pauses)
        yield self._gauge("vllm:gpu_cache_usage_perc", "The same under its older name", used)
        merged = self._pod.num_merged
        yield self._gauge("lorafleet_merged_adapters", "Merged adapters that the engine holds", merged)
        yield from self._host_tier()
        yield from self._canaries()
        yield from self._shadows()
        yield self._adapters_on_device(frozenset(stats.device_adapters if stats is not None else ()))

    def _host_tier(self) -> Iterator[Metric]:
        host, counts = self._pod.host, self._pod.host.counts
        yield self._gauge("lorafleet_host_tier_bytes", "Bytes of the adapters in host memory", host.used_bytes)
        yield self._gauge("lorafleet_host_tier_adapters", "Adapters in host memory", len(self._pod.engine.loaded))
        for name, text, value in (
            ("hits", "Requests that found their adapter in host memory", counts.hits),
            ("misses", "Requests that did not", counts.misses),
            ("loads", "Adapters brought into host memory", counts.loads),
            ("load_seconds", "Seconds that took, from the asking to the end", counts.load_s),
            ("evictions", "Adapters that left host memory because another needed the room", counts.evictions),
            ("waits_for_room", "Loads that waited because all that was there was in use", counts.waits_for_room),
        ):
            yield self._counter(f"lorafleet_host_tier_{name}", text, value)

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
        return _by_version("lorafleet_canary", told, rows)

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
        return _by_version("lorafleet_shadow", told, rows)

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_COMMON)
        family.add_metric((self._pod.config.base_id, _ENGINE), value)
        return family

    def _preemptions(self, number: int) -> Metric:
        # Of the engine process that runs: a counter that starts again with it, as Prometheus expects of a restart.
        return self._counter("vllm:num_preemptions", "Sequences preempted by the scheduler", number)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_COMMON)
        family.add_metric((self._pod.config.base_id, _ENGINE), value)
        return family

    def _adapters_on_device(self, digests: frozenset[str]) -> Metric:
        # Names of what is resident, not only of what runs: routers prefer a pod that needs no loading.
        catalog = self._pod.catalog
        resident = {item.registered.name for item in catalog.versions() if item.digest in digests}
        busy = {item.registered.name for item in catalog.versions() if self._pod.host.num_leases(item.digest)}
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters on the device, and those with requests that are not",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        names = ",".join(sorted(resident)), ",".join(sorted(busy - resident))
        family.add_metric((str(len(catalog.adapters) + len(catalog.by_hand)), *names), time.time())
        return family


def _by_version(
    prefix: str, told: Mapping[str, str], rows: Mapping[tuple[str, str], Sequence[float]]
) -> Iterator[Metric]:
    """One family for each thing that is told, of as many adapters as may have labels.

    `rows` are by adapter and version, each with the values in the order of `told`.
    """
    for number, (name, text) in enumerate(told.items()):
        family = GaugeMetricFamily(f"{prefix}_{name}", text, labels=("adapter", "version"))
        for labels, values in islice(rows.items(), MAX_ADAPTER_LABELS):
            family.add_metric(labels, values[number])
        yield family

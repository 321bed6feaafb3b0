"""Prometheus series of the pod: vLLM's names where one exists, so that routers and dashboards just work."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from lorafleet_serving.api.adapter_series import AdapterSeries
from lorafleet_serving.api.pod_gauges import ENGINE_LABEL, PodGauges
from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.pod import Pod

_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_E2E_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60)
_STALL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COMMON = ("model_name", "engine")


class PodMetrics:
    """Counters and histograms that requests move, and gauges read from the pod when they are scraped.

    An adapter goes by its name here, the base by `adapter_labels.BASE`.
    """

    def __init__(self, pod: Pod) -> None:
        self._common = (pod.config.base_id, ENGINE_LABEL)
        self._registry = CollectorRegistry()
        self._registry.register(PodGauges(pod))
        told = "Time from request to first token"
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", told, _TTFT_BUCKETS)
        told = "Time from request to last token"
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", told, _E2E_BUCKETS)
        self._prompt = self._counter("vllm:prompt_tokens", "Prompt tokens", _COMMON)
        self._generated = self._counter("vllm:generation_tokens", "Generated tokens", _COMMON)
        labels = (*_COMMON, "finished_reason")
        self._success = self._counter("vllm:request_success", "Requests that ended well", labels)
        told = "Time that a request waited for its adapter to come into host memory, and for nothing else"
        self._stalls = self._histogram("lorafleet_adapter_stall_seconds", told, _STALL_BUCKETS)
        self._refused = self._counter("lorafleet_refused_requests", "Requests turned away, by reason", ("reason",))
        self._adapters = AdapterSeries(self._registry, pod.config.metric_adapters)

    def render(self) -> bytes:
        """The exposition text. Labels of adapters change hands with it."""
        exchange = self._adapters.begin_scrape()
        shown = generate_latest(self._registry)
        self._adapters.end_scrape(exchange)
        return shown

    def first_token(self, adapter: str, seconds: float) -> None:
        """A request got its first token, so long after it came."""
        self._ttft.labels(*self._common).observe(seconds)
        self._adapters.first_token(adapter, seconds)

    def finished(self, adapter: str, seconds: float, reason: FinishReason) -> None:
        """A request ended well, so long after it came."""
        self._e2e.labels(*self._common).observe(seconds)
        finished = "length" if reason is FinishReason.LENGTH else "stop"
        self._success.labels(*self._common, finished).inc()
        self._adapters.finished(adapter, seconds)

    def failed(self, adapter: str) -> None:
        """An answer broke off, or did not begin since its adapter could not be had."""
        self._adapters.failed(adapter)

    def closed(self, adapter: str, num_prompt: int, num_generated: int) -> None:
        """A request is over, however it ended."""
        self._prompt.labels(*self._common).inc(num_prompt)
        self._generated.labels(*self._common).inc(num_generated)
        self._adapters.closed(adapter, num_prompt, num_generated)

    def stalled(self, seconds: float) -> None:
        """A request waited for its adapter alone."""
        self._stalls.labels(*self._common).observe(seconds)

    def refused(self, reason: str) -> None:
        """A request was turned away; `reason` is one of few."""
        self._refused.labels(reason).inc()

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _COMMON, buckets=buckets, registry=self._registry)

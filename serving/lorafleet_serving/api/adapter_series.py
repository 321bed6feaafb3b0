"""What is counted of each adapter, under labels that may change hands."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from lorafleet_serving.api.adapter_labels import FIXED, AdapterLabels, Exchange

# Few, since each adapter with series of its own has all of them.
_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class AdapterSeries:
    """Counters and histograms by adapter, of `most` adapters at a time; see `AdapterLabels`."""

    def __init__(self, registry: CollectorRegistry, most: int) -> None:
        self._registry = registry
        self._labels = AdapterLabels(most)
        self._begun: set[str] = set()
        self._requests = self._counter("requests", "Requests that are over")
        told = "Answers that broke off, and requests whose adapter could not be had"
        self._failures = self._counter("failures", told)
        self._prompt = self._counter("prompt_tokens", "Prompt tokens")
        self._generated = self._counter("generation_tokens", "Generated tokens")
        self._ttft = self._histogram("time_to_first_token_seconds", "Time from request to first token")
        self._e2e = self._histogram("request_latency_seconds", "Time from request to last token")
        for label in FIXED:
            self._begin(label)

    def first_token(self, adapter: str, seconds: float) -> None:
        """A request got its first token, so long after it came."""
        self._ttft.labels(self._label(adapter)).observe(seconds)

    def finished(self, adapter: str, seconds: float) -> None:
        """A request ended well, so long after it came."""
        self._e2e.labels(self._label(adapter)).observe(seconds)

    def failed(self, adapter: str) -> None:
        """An answer broke off, or did not begin since its adapter could not be had."""
        self._failures.labels(self._label(adapter)).inc()

    def closed(self, adapter: str, num_prompt: int, num_generated: int) -> None:
        """A request is over, however it ended."""
        self._labels.note_request(adapter)
        label = self._label(adapter)
        self._requests.labels(label).inc()
        self._prompt.labels(label).inc(num_prompt)
        self._generated.labels(label).inc(num_generated)

    def begin_scrape(self) -> Exchange:
        """Have labels change hands, where it is time; to be ended once all was shown."""
        exchange = self._labels.exchange()
        for label in exchange.gained:
            self._begin(label)
        return exchange

    def end_scrape(self, exchange: Exchange) -> None:
        """Drop the series whose last values were shown."""
        self._begun.difference_update(exchange.lost)
        for label in exchange.lost:
            for family in self._families:
                family.remove(label)

    @property
    def _families(self) -> tuple[Counter | Histogram, ...]:
        return self._requests, self._failures, self._prompt, self._generated, self._ttft, self._e2e

    def _label(self, adapter: str) -> str:
        label = self._labels.of(adapter)
        if label not in self._begun:
            self._begin(label)
        return label

    def _begin(self, label: str) -> None:
        """Show all series of a label, so that a monitor sees the first failure as one more."""
        self._begun.add(label)
        for family in self._families:
            family.labels(label)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"lorafleet_adapter_{name}", text, ("adapter",), registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"lorafleet_adapter_{name}", text, ("adapter",), buckets=_BUCKETS, registry=self._registry)

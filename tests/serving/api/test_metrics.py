"""What /metrics shows: every documented name and no other, and series that only grow while they last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lorafleet_serving.api import adapter_labels
from lorafleet_serving.api.adapter_labels import BASE, FIXED, OTHER
from lorafleet_serving.api.metrics import PodMetrics
from lorafleet_serving.config import FetcherConfig, PodConfig
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.pod import Pod
from tests.repository.sources import ROOT

Series = dict[tuple[str, str], float]
MOST = 3


@pytest.fixture
def metrics(tiny_model: Path, tmp_path: Path) -> PodMetrics:
    """Those of a pod that was never started, with labels for few adapters."""
    config = PodConfig(EngineConfig(tiny_model), FetcherConfig(tmp_path), metric_adapters=MOST)
    return PodMetrics(Pod(config, on_failure=lambda reason: None))


def test_what_the_readme_documents_is_what_is_shown(metrics: PodMetrics) -> None:
    shown = set(re.findall(r"^# TYPE (\S+) ", metrics.render().decode(), flags=re.MULTILINE))
    # When a series began: of every counter and histogram, by the library.
    shown = {name for name in shown if not name.endswith("_created")}
    section = (ROOT / "README.md").read_text().partition("## Metrics\n")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| `([\w:]+)(?:\{[\w, ]+\})?`", section, flags=re.MULTILINE)
    assert set(documented) == shown
    assert len(documented) == len(shown)


def answer(metrics: PodMetrics, adapter: str, num_times: int = 1) -> None:
    for _ in range(num_times):
        metrics.first_token(adapter, 0.1)
        metrics.finished(adapter, 0.2, FinishReason.STOP)
        metrics.closed(adapter, 5, 3)


def scrape(metrics: PodMetrics) -> Series:
    """Values by the name of a sample and its adapter."""
    families = text_string_to_metric_families(metrics.render().decode())
    samples = (sample for family in families for sample in family.samples if "le" not in sample.labels)
    return {
        (sample.name, sample.labels["adapter"]): sample.value
        for sample in samples
        if "adapter" in sample.labels and not sample.name.endswith("_created")
    }


def requests(shown: Series) -> dict[str, float]:
    return {adapter: value for (name, adapter), value in shown.items() if name == "lorafleet_adapter_requests_total"}


def test_a_series_begins_at_nothing_and_its_last_value_is_seen(
    metrics: PodMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_labels, "_PAUSE_S", 0.0)
    for name, num_times in (("a", 20), ("b", 20), ("quiet", 10)):
        answer(metrics, name, num_times)
    scrape(metrics)
    answer(metrics, "quiet")
    answer(metrics, "late", 100)
    shown = scrape(metrics)
    # In the scrape with which labels change hands the old one is whole and the new one empty.
    assert requests(shown) == {"a": 20, "b": 20, "quiet": 11, "late": 0, BASE: 0, "_merged": 0, OTHER: 100}
    assert all(value == 0 for (_, adapter), value in shown.items() if adapter == "late")
    answer(metrics, "late", 2)
    answer(metrics, "quiet", 3)
    assert requests(scrape(metrics)) == {"a": 20, "b": 20, "late": 2, BASE: 0, "_merged": 0, OTHER: 103}


def test_all_that_was_counted_is_seen_and_nothing_shrinks(metrics: PodMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_labels, "_PAUSE_S", 0.0)
    before, growth, num_requests, seen = Series(), 0.0, 0, set[str]()
    for round_ in range(18):
        # One after the other is asked far more than all before.
        for number in range(6):
            times = 3**number if round_ // 3 == number else 1
            answer(metrics, f"adapter-{number}", times)
            num_requests += times
        shown = scrape(metrics)
        for series, value in shown.items():
            assert value >= before.get(series, 0.0)
            if series[0] == "lorafleet_adapter_requests_total":
                growth += value - before.get(series, 0.0)
        assert len(requests(shown)) <= 2 * MOST + len(FIXED)
        before, seen = shown, seen.union(requests(shown))
    assert growth == num_requests
    assert len(seen) == 6 + len(FIXED), "no label changed hands"


def test_an_adapter_s_failures_and_times_are_its_own(metrics: PodMetrics) -> None:
    answer(metrics, "a")
    assert scrape(metrics)["lorafleet_adapter_failures_total", "a"] == 0
    metrics.failed("a")
    metrics.failed(BASE)
    shown = scrape(metrics)
    assert shown["lorafleet_adapter_failures_total", "a"] == shown["lorafleet_adapter_failures_total", BASE] == 1
    assert shown["lorafleet_adapter_time_to_first_token_seconds_sum", "a"] == pytest.approx(0.1)
    assert shown["lorafleet_adapter_request_latency_seconds_sum", "a"] == pytest.approx(0.2)
    assert shown["lorafleet_adapter_prompt_tokens_total", "a"] == 5
    assert shown["lorafleet_adapter_generation_tokens_total", "a"] == 3

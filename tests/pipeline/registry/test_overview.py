"""What is told of versions that are tried out beside a champion, over all pods."""

from __future__ import annotations

from lorafleet_contract.fleet import CanaryReport, ShadowReport
from lorafleet_pipeline.registry.overview import AdapterOverview


def overview(canaries: list[CanaryReport], shadows: list[ShadowReport]) -> AdapterOverview:
    return AdapterOverview(
        name="docstrings",
        num_versions=3,
        aliases={},
        digest=None,
        gate=None,
        state=None,
        error=None,
        serving={},
        canaries={f"http://pod-{number}": report for number, report in enumerate(canaries)},
        shadows={f"http://pod-{number}": report for number, report in enumerate(shadows)},
    )


def test_a_canary_is_told_over_all_pods_with_what_stopped_it() -> None:
    shown = overview([CanaryReport(2, 0.1, 5), CanaryReport(2, 0.1, 7, "it broke")], [])
    assert shown.trials() == ["canary of version 2: 10% of the requests, 12 answered; stopped: it broke"]


def test_a_shadow_is_told_over_all_pods_with_what_speaks_against_it() -> None:
    shown = overview([], [ShadowReport(3, 10, 4), ShadowReport(3, 1, 1, num_skipped=2, doubt="it loops")])
    assert shown.trials() == ["shadow of version 3: 11 answers compared, 5 the same, 2 requests skipped; it loops"]


def test_pods_that_have_not_followed_yet_are_told_apart() -> None:
    shown = overview([CanaryReport(3, 0.2), CanaryReport(2, 0.1)], [ShadowReport(2, 1, 1)])
    assert [line.partition(":")[0] for line in shown.trials()] == [
        "canary of version 2",
        "canary of version 3",
        "shadow of version 2",
    ]


def test_where_nothing_is_tried_out_nothing_is_told() -> None:
    assert overview([], []).trials() == []

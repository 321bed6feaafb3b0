from __future__ import annotations

import json
from typing import Any

import pytest

from lorafleet_contract.exceptions import InvalidManifest
from lorafleet_contract.fleet import AdapterReport, CanaryReport, HandLoadedReport, PodReport, VersionReport
from lorafleet_contract.states import GateStatus, ServeState, Tier

VERSION = VersionReport(
    version=3,
    digest="sha256:1",
    state=ServeState.READY,
    aliases=("champion", "live"),
    tiers=(Tier.DEVICE, Tier.DISK),
    in_flight=2,
    asked_at=1.25,
)
REPORT = PodReport(
    pod_id="pod-1",
    base_model="org/base",
    base_digest="sha256:2",
    adapters=(
        AdapterReport("tickets", 3, (VERSION,), CanaryReport(4, 0.1, 12, "slow"), noticed_at=1.0, moved_at=1.5),
        AdapterReport("empty", None),
    ),
    capacity={"device_bytes": 10},
    synced_at=1.5,
    loaded_by_hand=(HandLoadedReport("trial", "s3://bucket/x", "sha256:3", (Tier.HOST,), pinned=True),),
)


def test_report_survives_json() -> None:
    assert PodReport.from_json(json.loads(json.dumps(REPORT.to_json()))) == REPORT


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"adapters": [{"name": "x"}]},
        {"adapters": [{"name": "x", "serving": None, "versions": [], "canary": {"share": 1.0}}]},
        {"adapters": [{"name": "x", "serving": 1, "versions": [{"version": 1, "state": "ready"}], "canary": None}]},
        {"adapters": None},
    ],
)
def test_report_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidManifest, match="pod report"):
        PodReport.from_json(REPORT.to_json() | change)


def test_report_with_an_unknown_state_is_refused() -> None:
    data = json.loads(json.dumps(REPORT.to_json()))
    data["adapters"][0]["versions"][0]["state"] = "dreaming"
    with pytest.raises(InvalidManifest, match="dreaming"):
        PodReport.from_json(data)


def test_only_a_failed_gate_bars_from_serving() -> None:
    assert [status for status in GateStatus if not status.servable] == [GateStatus.FAILED]

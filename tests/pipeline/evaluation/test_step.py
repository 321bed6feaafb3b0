"""The evaluation step over a tiny adapter: its own process, its files, and what the gate says."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorafleet_contract.digest import WEIGHTS_FILE, adapter_digest
from lorafleet_contract.manifest import AdapterManifest
from lorafleet_contract.signature import verify
from lorafleet_contract.states import GateStatus
from lorafleet_pipeline.evaluation.comparison import RECORDS_FILE, Comparison, reference_of
from lorafleet_pipeline.evaluation.progress import Contestant, EvaluationProgress
from lorafleet_pipeline.evaluation.step import evaluate
from lorafleet_pipeline.exceptions import EvaluationError, InvalidSetting
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.training.result import TrainingResult
from tests.pipeline.training.conftest import SpecFactory
from tests.pipeline.training.prepared_run import make_run, make_settings, trained_by_hand


@pytest.fixture
def platform(tmp_path: Path) -> PlatformSettings:
    return make_settings(tmp_path)


@pytest.fixture
def tolerant(spec_of: SpecFactory) -> AdapterSpec:
    """A spec whose gate a random adapter passes."""
    return spec_of(gate={"min_lift": -1.0}, evaluation={"limit": 24, "metric": "rougeL"})


@pytest.fixture
def run(tolerant: AdapterSpec, platform: PlatformSettings) -> RunFolder:
    """A run with a random adapter."""
    run = make_run(tolerant, platform)
    trained_by_hand(run, tolerant)
    return run


def test_evaluation_leaves_report_manifest_and_signed_gate(
    tolerant: AdapterSpec, run: RunFolder, platform: PlatformSettings
) -> None:
    progress: list[EvaluationProgress] = []
    report = evaluate(tolerant, run, platform, progress.append)
    gate = json.loads(run.gate_report.read_text())
    verify(gate, platform.gate_key)
    manifest = AdapterManifest.from_json(json.loads(run.manifest.read_text()))
    assert report.status is GateStatus.PASSED
    assert [check.name for check in report.checks] == [
        "finite_weights",
        "loads",
        "enough_rows",
        "min_lift",
        "beats_base",
        "no_regression",
    ]
    assert report.digest == gate["digest"] == manifest.digest == adapter_digest(run.adapter_folder)
    assert report.manifest_digest == gate["manifest_digest"] == manifest.manifest_digest
    assert {name: gate[name] for name in ("base", "candidate", "lift", "rows")} == {
        "base": report.base,
        "candidate": report.candidate,
        "lift": report.lift,
        "rows": 24,
    }
    assert len(manifest.prompt.examples) == 2
    assert set(manifest.prompt.examples[0]) == {"word"}
    assert {item.contestant for item in progress} >= {Contestant.BASE, Contestant.CANDIDATE}
    records = [json.loads(line) for line in (run.evaluation / RECORDS_FILE).read_text().splitlines()]
    assert len(records) == 24
    assert report.candidate == pytest.approx(sum(record["candidate"]["score"] for record in records) / 24)
    # A second call finds the report; another key makes it worthless.
    assert evaluate(tolerant, run, platform) == report
    again = evaluate(tolerant, run, replace(platform, gate_key="another"))
    verify(json.loads(run.gate_report.read_text()), "another")
    assert (again.base, again.candidate) == (report.base, report.candidate)


def test_killed_evaluation_is_named_and_begins_anew(
    tolerant: AdapterSpec, run: RunFolder, platform: PlatformSettings
) -> None:
    def kill(progress: EvaluationProgress) -> None:
        known = ProcessIdentity.read(run.evaluation / "process.json")
        if known is not None and known.is_alive:
            os.kill(known.pid, signal.SIGKILL)

    with pytest.raises(EvaluationError, match="SIGKILL"):
        evaluate(tolerant, run, platform, kill)
    assert not run.gate_report.exists()


def _compare(spec: AdapterSpec, run: RunFolder, platform: PlatformSettings) -> Comparison:
    run.evaluation.mkdir(exist_ok=True)
    return Comparison(spec, run, platform, lambda progress: None)


def test_weights_that_are_not_finite_fail_the_gate(
    tolerant: AdapterSpec, run: RunFolder, platform: PlatformSettings
) -> None:
    path = run.adapter_folder / WEIGHTS_FILE
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, path)
    result = TrainingResult.read(run.training_result)
    replace(result, adapter_digest=adapter_digest(run.adapter_folder)).write(run.training_result)
    report = _compare(tolerant, run, platform).execute()
    assert report.status is GateStatus.FAILED
    assert report.reason.startswith("finite_weights: not finite: ")
    assert (report.base, report.candidate, report.lift, report.interval, report.rows) == (None, None, None, None, 0)
    verify(json.loads(run.gate_report.read_text()), platform.gate_key)


def test_adapter_that_the_engine_refuses_fails_the_gate(
    tolerant: AdapterSpec, run: RunFolder, platform: PlatformSettings
) -> None:
    path = run.adapter_folder / WEIGHTS_FILE
    weights = {name: value for name, value in load_file(path).items() if "layers.0.self_attn.q_proj.lora_A" not in name}
    save_file(weights, path)
    result = TrainingResult.read(run.training_result)
    replace(result, adapter_digest=adapter_digest(run.adapter_folder)).write(run.training_result)
    report = _compare(tolerant, run, platform).execute()
    assert report.status is GateStatus.FAILED
    assert report.reason.startswith("loads: ")


def test_gain_below_the_gate_is_a_result_with_its_reason(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    spec = spec_of(gate={"min_lift": 0.9}, evaluation={"limit": 24, "max_new_tokens": 4})
    run = make_run(spec, platform)
    trained_by_hand(run, spec)
    report = _compare(spec, run, platform).execute()
    assert report.status is GateStatus.FAILED
    assert "min_lift" in report.reason


def test_metric_that_does_not_fit_the_rows_is_named(spec_of: SpecFactory, platform: PlatformSettings) -> None:
    spec = spec_of(evaluation={"metric": "last_number", "limit": 24, "max_new_tokens": 4})
    run = make_run(spec, platform)
    trained_by_hand(run, spec)
    with pytest.raises(EvaluationError, match=r"evaluation\.metric does not fit"):
        _compare(spec, run, platform).execute()


def test_another_base_than_that_of_training_is_refused(
    tolerant: AdapterSpec, run: RunFolder, platform: PlatformSettings
) -> None:
    result = TrainingResult.read(run.training_result)
    replace(result, base_digest="sha256:other").write(run.training_result)
    with pytest.raises(EvaluationError, match="has changed since"):
        _compare(tolerant, run, platform).execute()


def test_evaluation_needs_a_trained_adapter_and_a_key(
    tolerant: AdapterSpec, run: RunFolder, platform: PlatformSettings
) -> None:
    with pytest.raises(InvalidSetting, match="LORAFLEET_GATE_KEY"):
        evaluate(tolerant, run, replace(platform, gate_key=""))
    run.training_result.unlink()
    with pytest.raises(EvaluationError, match="lorafleet train"):
        evaluate(tolerant, run, platform)


def test_reference_ends_where_an_answer_would() -> None:
    assert reference_of(" the answer.\n", ["\n"]) == "the answer."
    assert reference_of(" one\ntwo\n", ["\n"]) == "one"
    assert reference_of(" one\ntwo\n", []) == "one\ntwo"

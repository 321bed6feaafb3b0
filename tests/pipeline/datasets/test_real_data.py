"""Validation over real datasets with real dirt, where `LORAFLEET_TASK_DATA` says that they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.preparation import read_prepared
from lorafleet_pipeline.datasets.report import Severity, ValidationReport
from lorafleet_pipeline.datasets.step import validate
from lorafleet_pipeline.exceptions import DatasetRefused
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.spec import load_spec
from tests.pipeline.datasets.planted import make_settings, make_spec
from tests.repository.sources import ROOT

DATA = os.environ.get("LORAFLEET_TASK_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="LORAFLEET_TASK_DATA does not name the folder of the task data")

TASKS = {
    "gsm8k": ("{{ question }}", "answer", "last_number"),
    "wikisql": ("{{ question }}\n{{ columns }}", "sql", "exact_match"),
    "stsb": ("{{ sentence1 }}\n{{ sentence2 }}", "score", "exact_match"),
    "covid": ("{{ tweet }}", "sentiment", "accuracy"),
    "banking77": ("{{ utterance }}", "intent", "accuracy"),
    "bc5cdr": ("{{ sentence }}", "entities", "entity_f1"),
    "conllpp": ("{{ sentence }}", "entities", "entity_f1"),
}


def _addresses(task: str) -> dict[str, Any]:
    return {split.value: str(Path(DATA) / task / split.file_name) for split in Split}


def _validate(tmp_path: Path, task: str, **dataset: Any) -> ValidationReport:
    prompt, target, metric = TASKS[task]
    spec = make_spec(
        _addresses(task) | dataset,
        name=task,
        prompt=f"{prompt}\nAnswer:",
        completion=f" {{{{ {target} }}}}\n",
        evaluation={"metric": metric},
    )
    return validate(spec, RunFolder.of(tmp_path / "work", task, "r1"), make_settings(tmp_path))


def _warned(report: ValidationReport) -> set[str]:
    return {finding.check for finding in report.findings if finding.severity is Severity.WARNING}


@pytest.mark.parametrize("task", ["gsm8k", "wikisql", "stsb", "banking77", "bc5cdr"])
def test_dirt_is_reported_and_does_not_trip(tmp_path: Path, task: str) -> None:
    report = _validate(tmp_path, task)
    assert report.success
    recurring = [item.rows or 0 for item in report.findings if item.check == "does_not_recur"]
    kept = sum(summary.rows - summary.examples for summary in report.splits.values())
    assert kept == sum(recurring)


def test_mis_encoded_tweets_are_counted(tmp_path: Path) -> None:
    report = _validate(tmp_path, "covid")
    assert {"no_mojibake", "no_email", "no_phone"} <= _warned(report)


def test_train_sentences_of_test_refuse_until_they_are_tolerated(tmp_path: Path) -> None:
    with pytest.raises(DatasetRefused, match=r"test: not_in_train fails for \d+ of 3453 rows \(at most 1% may\)"):
        _validate(tmp_path, "conllpp")
    report = _validate(tmp_path, "conllpp", max_leakage=0.1)
    assert report.splits[Split.TRAIN].examples < report.splits[Split.TRAIN].rows


def test_shipped_e2e_spec_fits_its_data(tmp_path: Path, base_model: Path) -> None:
    spec = load_spec(ROOT / "dags" / "adapters" / "e2e_nlg.yaml")
    dataset = spec.dataset.model_copy(update=_addresses("e2e_nlg"))
    spec = spec.model_copy(update={"dataset": dataset, "base_model": str(base_model)})
    run = RunFolder.of(tmp_path / "work", spec.name, "r1")
    report = validate(spec, run, make_settings(tmp_path))
    assert report.success
    assert report.lengths_exact
    assert all(summary.longest <= spec.training.max_len for summary in report.splits.values())
    assert len(read_prepared(run).test) == 4693
    assert {finding.check for finding in report.findings} == {"no_duplicates", "no_contradictions"}

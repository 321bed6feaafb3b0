from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.preparation import read_prepared
from lorafleet_pipeline.datasets.report import Finding, Severity, ValidationReport
from lorafleet_pipeline.datasets.step import ValidationProgress, read_report, validate
from lorafleet_pipeline.exceptions import DatasetRefused, InvalidSpec, StorageError
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import S3Settings
from lorafleet_pipeline.spec import AdapterSpec
from tests.pipeline.datasets.planted import Row, clean_rows, make_settings, make_spec, write_splits
from tests.services import RunningS3

SECRETS = ("zanzibar-4711", "quokka@example.org", "4111 1111 1111 1111")
SECRET_NUMBER = 98765431

Planted = Callable[..., tuple[AdapterSpec, RunFolder]]


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    """Makes a spec over three splits and its run folder: `planted(train=[...], spec={...}, dataset={...})`."""

    def make(spec: Row | None = None, dataset: Row | None = None, **splits: list[Row]) -> tuple[AdapterSpec, RunFolder]:
        rows = {"train": clean_rows(400), "validation": clean_rows(100, 1000), "test": clean_rows(200, 2000)} | splits
        addresses = write_splits(tmp_path / "data", **rows)
        return make_spec(addresses | (dataset or {}), **(spec or {})), RunFolder.of(tmp_path / "work", "planted", "r1")

    return make


def _validate(tmp_path: Path, made: tuple[AdapterSpec, RunFolder]) -> ValidationReport:
    return validate(*made, make_settings(tmp_path))


def _found(report: ValidationReport, check: str, split: Split = Split.TRAIN) -> Finding:
    (finding,) = [item for item in report.findings if (item.check, item.split) == (check, split)]
    return finding


def test_clean_dataset_passes_and_leaves_everything(tmp_path: Path, planted: Planted) -> None:
    spec, run = planted()
    seen: list[ValidationProgress] = []
    report = validate(spec, run, make_settings(tmp_path), seen.append)
    assert report.success
    assert not report.findings
    assert report.digest == read_prepared(run).digest
    assert {split: summary.examples for split, summary in report.splits.items()} == {
        Split.TRAIN: 400,
        Split.VALIDATION: 100,
        Split.TEST: 200,
    }
    assert Path(report.docs_url).is_file()
    assert read_report(run) == report
    assert [step.done for step in seen] == list(range(seen[0].total))
    assert not report.lengths_exact


def test_retry_returns_the_first_report_and_a_changed_spec_validates_again(tmp_path: Path, planted: Planted) -> None:
    spec, run = planted()
    report = _validate(tmp_path, (spec, run))
    written = run.validation_file.stat().st_mtime_ns
    assert _validate(tmp_path, (spec, run)) == report
    assert run.validation_file.stat().st_mtime_ns == written
    _validate(tmp_path, (spec.model_copy(update={"prompt": "{{ text }}\nAge:"}), run))
    assert run.validation_file.stat().st_mtime_ns > written


def test_train_rows_inside_test_are_refused_by_number(tmp_path: Path, planted: Planted) -> None:
    made = planted(test=clean_rows(190, 2000) + clean_rows(10))
    with pytest.raises(DatasetRefused) as caught:
        _validate(tmp_path, made)
    message = str(caught.value)
    assert "test: not_in_train fails for 10 of 200 rows (at most 1% may), at row 191, 192" in message
    assert "remove from train" in message
    report = read_report(made[1])
    assert not report.success
    assert _found(report, "does_not_recur").row_numbers == tuple(range(1, 11))
    assert not made[1].dataset.exists()


def test_a_few_recurring_rows_are_a_warning_and_leave_train(tmp_path: Path, planted: Planted) -> None:
    report = _validate(tmp_path, planted(test=clean_rows(198, 2000) + clean_rows(2, 7)))
    assert report.success
    assert _found(report, "not_in_train", Split.TEST).severity is Severity.WARNING
    assert _found(report, "does_not_recur").row_numbers == (8, 9)
    assert report.splits[Split.TRAIN].examples == 398


def test_tolerance_for_recurring_rows_is_the_specs(tmp_path: Path, planted: Planted) -> None:
    rows = clean_rows(190, 2000) + clean_rows(10)
    assert _validate(tmp_path, planted(test=rows, dataset={"max_leakage": 0.06})).success


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        ({"text": "case 7000", "label": None}, "completion_not_null"),
        ({"text": "case 7001", "label": " "}, "completion_not_empty"),
        ({"text": None, "label": "old"}, "prompt_not_null"),
        ({"label": "old"}, "prompt_not_null"),
    ],
)
def test_row_without_content_is_refused(tmp_path: Path, planted: Planted, bad: Row, check: str) -> None:
    with pytest.raises(DatasetRefused, match=f"train: {check} fails for 1 of 401 rows, at row 401"):
        _validate(tmp_path, planted(train=[*clean_rows(400), bad]))


def test_null_that_the_template_treats_is_no_defect(tmp_path: Path, planted: Planted) -> None:
    rows = [*clean_rows(400), {"text": "case 7000", "label": "old", "hint": None}]
    spec = {"prompt": "{{ text }}{% if hint is defined and hint %} ({{ hint }}){% endif %}\nLabel:"}
    splits = {"validation": [{**row, "hint": "x"} for row in clean_rows(50, 1000)]}
    test = [{**row, "hint": None} for row in clean_rows(50, 2000)]
    assert _validate(tmp_path, planted(train=rows, test=test, spec=spec, **splits)).success


def test_empty_prompt_is_refused(tmp_path: Path, planted: Planted) -> None:
    rows = [*clean_rows(400), {"text": "", "label": "old"}]
    with pytest.raises(DatasetRefused, match="prompt_not_empty fails for 1 of 401 rows, at row 401"):
        _validate(tmp_path, planted(train=rows, spec={"prompt": "{{ text }}"}))


def test_duplicates_and_contradictions_are_counted(tmp_path: Path, planted: Planted) -> None:
    row = clean_rows(1)[0]
    report = _validate(tmp_path, planted(train=[*clean_rows(400), row, {**row, "label": "new"}]))
    assert _found(report, "no_duplicates").row_numbers == (401,)
    assert _found(report, "no_contradictions").row_numbers == (1, 401, 402)
    assert _found(report, "no_contradictions").severity is Severity.WARNING


def test_several_references_are_usual_in_generation(tmp_path: Path, planted: Planted) -> None:
    rows = [*clean_rows(400), {**clean_rows(1)[0], "label": "of an age"}]
    report = _validate(tmp_path, planted(train=rows, spec={"evaluation": {"metric": "rougeL"}}))
    assert _found(report, "no_contradictions").severity is Severity.INFO


def test_mostly_repeated_train_rows_are_refused(tmp_path: Path, planted: Planted) -> None:
    with pytest.raises(DatasetRefused, match=r"no_duplicates fails for 300 of 400 rows \(at most 50% may\)"):
        _validate(tmp_path, planted(train=clean_rows(100) * 4))


def test_labels_that_train_never_shows_and_typos_are_found(tmp_path: Path, planted: Planted) -> None:
    rows = [{**row, "label": f"{row['label']}est"} for row in clean_rows(400)]
    typo = {"text": "case 7000", "label": "odlest"}
    test = [{**row, "label": f"{row['label']}est"} for row in clean_rows(199, 2000)] + [{**typo, "label": "youngest"}]
    validation = [{**row, "label": f"{row['label']}est"} for row in clean_rows(50, 1000)]
    report = _validate(tmp_path, planted(train=[*rows, typo], test=test, validation=validation))
    assert _found(report, "label_spelt_as_others").row_numbers == (401,)
    assert _found(report, "label_known", Split.TEST).row_numbers == (200,)
    assert "youngest" not in json.dumps(report.to_json())


def test_test_of_unknown_labels_is_refused(tmp_path: Path, planted: Planted) -> None:
    rows = [{**row, "label": f"other-{row['label']}"} for row in clean_rows(200, 2000)]
    with pytest.raises(DatasetRefused, match="test: label_known fails for 200 of 200 rows"):
        _validate(tmp_path, planted(test=rows))


def test_long_rows_are_named(tmp_path: Path, planted: Planted) -> None:
    rows = [*clean_rows(400), {"text": "word " * 900, "label": "old"}]
    report = _validate(tmp_path, planted(train=rows))
    assert _found(report, "fits_max_len").row_numbers == (401,)
    assert _found(report, "not_unusually_long").row_numbers == (401,)
    with pytest.raises(DatasetRefused, match=r"fits_max_len fails for .* \(at most 50% may\).*training.max_len"):
        _validate(tmp_path, planted(spec={"training": {"max_len": 16}, "prompt": "{{ text * 4 }}"}))


def test_lengths_are_tokens_of_a_base_that_is_here(tmp_path: Path, planted: Planted, base_model: Path) -> None:
    assert _validate(tmp_path, planted(spec={"base_model": str(base_model)})).lengths_exact


def test_no_row_content_reaches_reports_pages_or_logs(
    tmp_path: Path, planted: Planted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rows: list[Row] = [{"text": f"{secret}, {secret}", "label": f"{SECRETS[0]}-label"} for secret in SECRETS]
    rows += [{"text": SECRETS[0], "label": "caf\u00c3\u00a9"}] * 2
    expectations: list[dict[str, Any]] = [
        {"type": "expect_column_values_to_match_regex", "column": "text", "regex": "^the", "severity": "warning"},
        {"type": "expect_column_max_to_be_between", "column": "size", "max_value": 5, "severity": "warning"},
        {"type": "expect_column_distinct_values_to_be_in_set", "column": "label", "value_set": ["old"]}
        | {"severity": "info"},
        {"type": "expect_column_most_common_value_to_be_in_set", "column": "label", "value_set": ["x"]}
        | {"severity": "warning"},
        {"type": "expect_column_values_to_be_unique", "column": "text"},
    ]
    rows = [{**row, "size": SECRET_NUMBER} for row in rows]
    sized = {
        "train": [*rows, *({**row, "size": 1} for row in clean_rows(20))],
        "validation": [{**row, "size": 1} for row in clean_rows(20, 1000)],
    }
    made = planted(**sized, test=rows, spec={"expectations": expectations})
    with pytest.raises(DatasetRefused) as caught:
        _validate(tmp_path, made)
    pages = [path for path in tmp_path.joinpath("docs").rglob("*") if path.is_file()]
    assert any(path.name == "index.html" for path in pages)
    texts = [path.read_bytes().decode(errors="replace") for path in [*pages, made[1].validation_file]]
    texts += [str(caught.value), caplog.text]
    for secret in (*SECRETS, str(SECRET_NUMBER), "caf\u00c3"):
        assert not [text[:80] for text in texts if secret in text]
    report = read_report(made[1])
    assert {"no_email", "no_card", "no_mojibake"} <= {finding.check for finding in report.findings}
    own = {item.check: item for item in report.findings if item.split is Split.TRAIN}
    assert own["expectations.0 on text"].rows == 5
    assert own["expectations.1 on size"].rows is None
    assert own["expectations.4 on text"].severity is Severity.CRITICAL


@pytest.mark.parametrize(
    ("expectation", "says"),
    [
        ({"type": "expect_the_best"}, r"expectations\.0 \(expect_the_best\) is no expectation"),
        ({"type": "expect_column_to_exist", "column": "txet"}, r"names column 'txet', which is not there"),
        ({"type": "expect_column_values_to_be_unique", "colum": "text"}, r"has wrong arguments \(column: field req"),
        (
            {"type": "expect_column_values_to_be_between", "column": "text", "min_value": 3},
            r"expectations\.0 on text \(expect_column_values_to_be_between\) cannot be evaluated on train",
        ),
    ],
)
def test_expectation_that_cannot_be_is_the_specs_error(
    tmp_path: Path, planted: Planted, expectation: dict[str, Any], says: str
) -> None:
    made = planted(spec={"expectations": [expectation]})
    with pytest.raises(InvalidSpec, match=says) as caught:
        _validate(tmp_path, made)
    assert "\n" not in str(caught.value)
    assert not made[1].dataset.exists()


def test_data_docs_go_to_s3_as_pages(tmp_path: Path, planted: Planted, s3: RunningS3) -> None:
    spec, run = planted()
    keys = S3Settings(endpoint=s3.endpoint, access_key_id=s3.access_key, secret_access_key=s3.secret_key)
    report = validate(spec, run, make_settings(tmp_path, s3=keys, docs_url="s3://datadocs"))
    assert report.docs_url == "s3://datadocs/planted/r1/index.html"
    page = s3.client().get_object(Bucket="datadocs", Key="planted/r1/index.html")
    assert page["ContentType"] == "text/html"
    assert b"planted-train" in page["Body"].read()


def test_fresh_look_sees_data_that_changed_and_a_retry_does_not(tmp_path: Path, planted: Planted) -> None:
    spec, run = planted()
    first = _validate(tmp_path, (spec, run))
    planted(train=clean_rows(300))
    assert _validate(tmp_path, (spec, run)) == first
    again = validate(spec, run, make_settings(tmp_path), fresh=True)
    assert again.splits[Split.TRAIN].rows == 300
    assert again.digest == read_prepared(run).digest != first.digest


def test_nan_in_a_column_of_the_prompt_is_refused_as_null(tmp_path: Path, planted: Planted) -> None:
    made = planted(train=[*clean_rows(400), {"text": math.nan, "label": "old"}])
    with pytest.raises(DatasetRefused, match="prompt_not_null"):
        _validate(tmp_path, made)


def test_full_disk_is_one_line_with_the_remedy(tmp_path: Path, planted: Planted) -> None:
    spec, run = planted()
    run.path.mkdir(parents=True)
    run.spec_file.symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"No space left on device\): free some space there"):
        _validate(tmp_path, (spec, run))

"""The validation step: load, judge, publish Data Docs, and leave a prepared dataset or refuse it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

from lorafleet_pipeline.datasets.dataset import Dataset, Split
from lorafleet_pipeline.datasets.preparation import MANIFEST_FILE, Assembly, assemble, write_prepared
from lorafleet_pipeline.datasets.report import SplitSummary, ValidationReport
from lorafleet_pipeline.datasets.validation import Verdict, judge
from lorafleet_pipeline.exceptions import DatasetRefused
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.storage import Storage, disk_errors

_STAGES = ("load", *(f"check {split}" for split in Split), "publish docs", "write")
_MAX_NAMED = 3
"""Most findings that the one line of a refusal names; the report has them all."""


@dataclass(frozen=True)
class ValidationProgress:
    """How far the step has come."""

    stage: str
    done: int
    total: int = len(_STAGES)


OnProgress = Callable[[ValidationProgress], None]


def validate(
    spec: AdapterSpec,
    run: RunFolder,
    settings: PlatformSettings,
    on_progress: OnProgress | None = None,
    *,
    fresh: bool = False,
) -> ValidationReport:
    """Validate and prepare the dataset of a run. A retry returns the report of the try that passed.

    `fresh` looks at the data again, which may have changed since then.

    Raises:
        DatasetRefused: a critical expectation failed; the report and Data Docs are written all the same.
        DatasetUnreadable: a file, a column or a split is wrong or missing.
        StorageError: an address cannot be read, or Data Docs or the run folder cannot be written.
        InvalidSpec: an expectation of the spec does not exist or does not fit the columns.
    """
    finished = None if fresh else _finished(spec, run)
    if finished is not None:
        return finished
    with disk_errors(run.path):
        return _validate(spec, run, settings, _reporter(on_progress))


def _validate(
    spec: AdapterSpec, run: RunFolder, settings: PlatformSettings, report_stage: Callable[[str], None]
) -> ValidationReport:
    run.path.mkdir(parents=True, exist_ok=True)
    run.spec_file.write_text(spec.to_yaml(), encoding="utf-8")
    storage = Storage(settings.s3)
    report_stage("load")
    assembly = assemble(spec, storage)
    shutil.rmtree(run.docs, ignore_errors=True)
    verdict = judge(assembly, spec, run.docs, lambda split: report_stage(f"check {split}"))
    report_stage("publish docs")
    docs_url = _publish(run, settings, storage)
    report_stage("write")
    return _conclude(assembly, verdict, docs_url, spec, run)


def read_report(run: RunFolder) -> ValidationReport:
    """The report that the step left."""
    return ValidationReport.from_json(json.loads(run.validation_file.read_text(encoding="utf-8")))


def _finished(spec: AdapterSpec, run: RunFolder) -> ValidationReport | None:
    files = (run.validation_file, run.dataset / MANIFEST_FILE, run.spec_file)
    if not all(path.is_file() for path in files) or run.spec_file.read_text(encoding="utf-8") != spec.to_yaml():
        return None
    report = read_report(run)
    return report if report.success else None


def _reporter(on_progress: OnProgress | None) -> Callable[[str], None]:
    def report(stage: str) -> None:
        if on_progress is not None:
            on_progress(ValidationProgress(stage, _STAGES.index(stage)))

    return report


def _publish(run: RunFolder, settings: PlatformSettings, storage: Storage) -> str:
    # Animations of a tutorial that the pages do not show: most of the site's bytes.
    for path in run.docs.rglob("*.gif"):
        path.unlink()
    address = f"{settings.docs_url}/{run.adapter}/{run.run_key}"
    storage.upload_folder(run.docs, address)
    return f"{address}/index.html"


def _conclude(
    assembly: Assembly, verdict: Verdict, docs_url: str, spec: AdapterSpec, run: RunFolder
) -> ValidationReport:
    report = ValidationReport(
        adapter=run.adapter,
        run_key=run.run_key,
        success=False,
        digest=None,
        expectations=verdict.expectations,
        splits=verdict.splits,
        lengths_exact=verdict.lengths_exact,
        docs_url=docs_url,
        findings=verdict.findings,
    )
    if report.critical:
        shutil.rmtree(run.dataset, ignore_errors=True)
        _write(report, run)
        raise DatasetRefused(_refusal(report))
    dataset = write_prepared(assembly, spec, run)
    report = replace(report, success=True, digest=dataset.digest, splits=_with_examples(verdict.splits, dataset))
    _write(report, run)
    return report


def _with_examples(splits: dict[Split, SplitSummary], dataset: Dataset) -> dict[Split, SplitSummary]:
    return {split: replace(summary, examples=len(dataset.split(split))) for split, summary in splits.items()}


def _write(report: ValidationReport, run: RunFolder) -> None:
    partial = run.validation_file.with_suffix(".partial")
    partial.write_text(json.dumps(report.to_json(), indent=2), encoding="utf-8")
    partial.replace(run.validation_file)


def _refusal(report: ValidationReport) -> str:
    named = "; ".join(finding.summary for finding in report.critical[:_MAX_NAMED])
    others = len(report.critical) - _MAX_NAMED
    more = f"; and {others} more" if others > 0 else ""
    return f"the dataset of {report.adapter} is refused: {named}{more}; Data Docs: {report.docs_url}"

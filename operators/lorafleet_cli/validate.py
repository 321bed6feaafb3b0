"""`lorafleet validate`: an adapter's dataset against its expectations, without Airflow."""

from __future__ import annotations

from lorafleet_cli.console import make_progress, notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_cli.run import RunOption, SpecArgument, open_run
from lorafleet_pipeline.datasets.report import ValidationReport
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec


def command(
    spec_path: SpecArgument,
    run_key: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an adapter's dataset against its expectations, and prepare it for training."""
    spec, settings, run = open_run(spec_path, run_key, registry_required=False)
    report = _validate(spec, run, settings)
    if as_json:
        print_json(report.to_json())
        return
    _show(report)
    notes.print(f"run folder: {run.path}")


def _validate(spec: AdapterSpec, run: RunFolder, settings: PlatformSettings) -> ValidationReport:
    # Imported once the spec is known to be right: the suite's library takes seconds.
    from lorafleet_pipeline.datasets.step import ValidationProgress, validate

    if not notes.is_terminal:
        return validate(spec, run, settings, fresh=True)
    with make_progress() as display:
        task = display.add_task("validate", total=None)

        def show(progress: ValidationProgress) -> None:
            display.update(task, description=progress.stage, completed=progress.done, total=progress.total)

        return validate(spec, run, settings, show, fresh=True)


def _show(report: ValidationReport) -> None:
    unit = "tokens" if report.lengths_exact else "estimated tokens"
    print_table(
        f"Dataset of {report.adapter}",
        ("split", "rows", "examples", f"median {unit}", f"p95 {unit}", f"longest, {unit}"),
        (
            (split, summary.rows, summary.examples, summary.median, summary.p95, summary.longest)
            for split, summary in report.splits.items()
        ),
    )
    if report.findings:
        print_table(
            "Findings",
            ("severity", "finding"),
            ((finding.severity, finding.summary) for finding in report.findings),
        )
    results.print(f"{report.expectations} expectations, none critical failed; digest {report.digest}")
    results.print(f"Data Docs: {report.docs_url}")

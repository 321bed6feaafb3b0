"""`lorafleet evaluate`: a trained adapter against its base and the champion, without Airflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorafleet_cli.console import JsonOption, make_progress, notes, print_json, print_table, results
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import load_spec


def command(
    spec_path: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file of the adapter.")],
    run_key: Annotated[
        str | None, typer.Option("--run", help="Key of the run. Default: from the spec's digest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained adapter against its base and the champion, and apply the gate."""
    from lorafleet_pipeline.evaluation.report import EvaluationReport
    from lorafleet_pipeline.evaluation.step import EvaluationProgress, evaluate

    spec = load_spec(spec_path)
    settings = PlatformSettings.load(registry_required=False)
    run = RunFolder.of(settings.work_dir, spec.name, run_key or f"local-{spec.spec_digest[7:19]}")
    with make_progress() as display:
        task = display.add_task("answers", total=None)

        def show(progress: EvaluationProgress) -> None:
            display.update(task, completed=progress.done, total=progress.total)

        report: EvaluationReport = evaluate(spec, run, settings, show)
    if as_json:
        print_json(report.to_json())
        return
    low, high = report.interval
    print_table(
        f"{report.adapter}, {report.metric} over {report.rows} rows",
        ("system", "score"),
        [
            ("base", f"{report.base:.4f}"),
            ("candidate", f"{report.candidate:.4f}"),
            ("champion", None if report.champion is None else f"{report.champion:.4f}"),
            ("lift", f"{report.lift:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"),
        ],
    )
    print_table(
        "Gate", ("check", "passed", "detail"), ((c.name, "yes" if c.passed else "no", c.detail) for c in report.checks)
    )
    results.print(f"gate {report.gate_status}{f': {report.gate_reason}' if report.gate_reason else ''}", markup=False)
    notes.print(f"run folder: {run.path}")

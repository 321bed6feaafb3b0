"""`lorafleet evaluate`: a trained adapter against its base and the champion, without Airflow."""

from __future__ import annotations

from lorafleet_cli.console import make_progress, notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_cli.run import RunOption, SpecArgument, open_run


def command(
    spec_path: SpecArgument,
    run_key: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained adapter against its base and the champion, and apply the gate."""
    from lorafleet_pipeline.evaluation.progress import EvaluationProgress
    from lorafleet_pipeline.evaluation.step import evaluate

    spec, settings, run = open_run(spec_path, run_key, registry_required=False)
    with make_progress() as display:
        task = display.add_task("loading", total=None)

        def show(progress: EvaluationProgress) -> None:
            display.update(task, description=str(progress), completed=progress.done, total=progress.total or None)

        report = evaluate(spec, run, settings, show)
    if as_json:
        print_json(report.to_json())
        return
    interval = "" if report.interval is None else " (95 % interval {:+.4f} to {:+.4f})".format(*report.interval)
    rows = [
        ("base", _score(report.base)),
        ("candidate", _score(report.candidate)),
        ("champion", _score(report.champion)),
        ("lift", None if report.lift is None else f"{report.lift:+.4f}{interval}"),
    ]
    print_table(f"{report.adapter}, {report.metric} over {report.rows} rows", ("system", "score"), rows)
    checks = ((check.name, "yes" if check.passed else "no", check.detail) for check in report.checks)
    print_table("Gate", ("check", "passed", "detail"), checks)
    results.print(f"gate {report.status}")
    notes.print(f"run folder: {run.path}")


def _score(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"

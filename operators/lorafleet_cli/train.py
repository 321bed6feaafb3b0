"""`lorafleet train`: train an adapter in a process of its own, and follow it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from lorafleet_cli.console import format_duration, make_progress, notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_cli.run import RunOption, SpecArgument, open_run


def command(
    spec_path: SpecArgument,
    run_key: RunOption = None,
    force: Annotated[bool, typer.Option("--force", help="Train though nothing has changed.")] = False,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Work without MLflow.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter from its spec; a second call follows, resumes, or finds the result."""
    from lorafleet_pipeline.training.progress import TrainingProgress
    from lorafleet_pipeline.training.step import train

    spec, settings, run = open_run(spec_path, run_key, registry_required=not no_tracking)
    if no_tracking:
        settings = dataclasses.replace(settings, mlflow_url="")
    with make_progress() as display:
        task = display.add_task("loading", total=None)

        def show(progress: TrainingProgress) -> None:
            display.update(task, description=str(progress), completed=progress.step, total=progress.num_steps)

        result = train(spec, run, settings, show, force=force)
    if as_json:
        print_json(result.to_json())
        return
    if result.skipped_version is not None:
        results.print(f"Skipped: version {result.skipped_version} has the same spec and data; --force trains again.")
        return
    rows = [
        ("digest", result.adapter_digest),
        ("steps", result.num_steps),
        ("loss", None if result.loss is None else f"{result.loss:.4f}"),
        ("validation loss", None if result.validation_loss is None else f"{result.validation_loss:.4f}"),
        ("tokens/s", None if result.tokens_per_s is None else f"{result.tokens_per_s:.0f}"),
        ("time", format_duration(result.seconds)),
        ("MLflow run", result.mlflow_run_id),
    ]
    print_table(f"Adapter {spec.name}", ("fact", "value"), rows)
    notes.print(f"run folder: {run.path}")

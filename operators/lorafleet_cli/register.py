"""`lorafleet register`: an evaluated adapter becomes a version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorafleet_cli.console import JsonOption, notes, print_json, print_table, results
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import load_spec


def command(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="The adapter's YAML file.")],
    run_key: Annotated[
        str | None, typer.Option("--run", help="Key of the run. Default: from the spec's digest.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Register an evaluated adapter as a new version."""
    from lorafleet_pipeline.registry.publish import register

    spec, settings = load_spec(spec_file), PlatformSettings.load()
    run = RunFolder.of(settings.work_dir, spec.name, run_key or f"local-{spec.spec_digest[7:19]}")
    with notes.status(f"Registering {spec.name}"):
        version = register(spec, run, settings)
    if as_json:
        print_json(version.to_json())
        return
    known = "" if version.is_new else " (registered before)"
    results.print(f"{version.name} has version {version.version}{known}.", markup=False)
    print_table(
        None, ("fact", "value"), [("digest", version.digest), ("address", version.uri), ("gate", version.gate_status)]
    )
    if version.gate_status == "failed":
        notes.print("note: its gate failed, so no pod will serve it; `lorafleet promote --waive REASON` overrules that")

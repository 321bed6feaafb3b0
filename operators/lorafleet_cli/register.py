"""`lorafleet register`: an evaluated adapter becomes a version."""

from __future__ import annotations

from lorafleet_cli.console import notes, print_json, print_table, results
from lorafleet_cli.options import JsonOption
from lorafleet_cli.run import RunOption, SpecArgument, open_run


def command(
    spec_path: SpecArgument,
    run_key: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register an evaluated adapter as a new version."""
    from lorafleet_pipeline.registry.publish import register

    spec, settings, run = open_run(spec_path, run_key, registry_required=True)
    with notes.status(f"Registering {spec.name}"):
        version = register(spec, run, settings)
    if as_json:
        print_json(version.to_json())
        return
    known = "" if version.is_new else " (registered before)"
    results.print(f"{version.name} has version {version.version}{known}.")
    print_table(
        None, ("fact", "value"), [("digest", version.digest), ("address", version.uri), ("gate", version.gate_status)]
    )
    if version.gate_status == "failed":
        notes.print("note: its gate failed, so no pod will serve it; `lorafleet promote --waive REASON` overrules that")

"""The run that a step works on when it is called by hand: its spec, its settings and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec, load_spec

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file of the adapter.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Key of the run. Default: from the spec's digest.")]


class Run(NamedTuple):
    """What every step gets."""

    spec: AdapterSpec
    settings: PlatformSettings
    folder: RunFolder


def open_run(spec_path: Path, run_key: str | None, *, registry_required: bool) -> Run:
    """Read spec and settings; the same spec finds the same folder again.

    Raises:
        InvalidSpec: the spec is wrong.
        InvalidSetting: a setting is wrong, or the registry that is required is not configured.
    """
    spec = load_spec(spec_path)
    settings = PlatformSettings.load(registry_required=registry_required)
    key = run_key or f"local-{spec.spec_digest.removeprefix('sha256:')[:12]}"
    return Run(spec, settings, RunFolder.of(settings.work_dir, spec.name, key))

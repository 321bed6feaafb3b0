"""Where an operator's spec comes from: the spec file, with the values of the run's form put over it.

The first step of a run writes the result into the run folder; later steps read it there, so that a spec that is
edited while a run is under way does not change the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.spec import AdapterSpec, load_spec, parse_spec


def overridden(spec: AdapterSpec, overrides: Mapping[str, Any] | None, source: str) -> AdapterSpec:
    """The spec with dotted keys replaced, `{"training.steps": 20}`; a value of None leaves the spec's own.

    Raises:
        InvalidSpec: a key is unknown or a value is out of bounds.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if not given:
        return spec
    document = spec.model_dump(mode="json")
    for key, value in given.items():
        section = document
        *path, last = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return parse_spec(document, source=f"{source} with {', '.join(sorted(given))} of this run")


def first_spec(path: str, overrides: Mapping[str, Any] | None) -> AdapterSpec:
    """The spec as the first step of a run takes it."""
    return overridden(load_spec(Path(path)), overrides, source=path)


def run_spec(path: str, overrides: Mapping[str, Any] | None, run: RunFolder) -> AdapterSpec:
    """The spec as the run began with it; from the file where no earlier step ran."""
    if run.spec_file.is_file():
        return load_spec(run.spec_file)
    return first_spec(path, overrides)

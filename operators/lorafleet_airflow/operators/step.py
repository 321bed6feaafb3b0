"""What the operators of the pipeline's steps have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lorafleet_airflow.failures import lasting_errors_fail_at_once
from lorafleet_airflow.operators.platform import PlatformOperator
from lorafleet_airflow.run_identity import run_key_of
from lorafleet_airflow.spec_source import first_spec, run_spec
from lorafleet_pipeline.exceptions import InvalidSpec
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec, load_spec


@dataclass(frozen=True)
class StepInput:
    """What every step function takes, and the context of the task that calls it."""

    spec: AdapterSpec
    run: RunFolder
    settings: PlatformSettings
    context: Mapping[str, Any]


class AdapterStepOperator(PlatformOperator):
    """
    One step of an adapter's pipeline. Subclasses call one step function each.

    :param spec: path of the AdapterSpec file.
    :param adapter: name of the adapter; read from the spec where it is not given. Steps after the first one
        need the file no more when they are told the name.
    :param overrides: values put over the spec, by dotted key, for instance ``{"training.steps": 20}``; a value
        of None leaves the spec's own.

    Connections: see `PlatformOperator`.
    """

    template_fields: Sequence[str] = (*PlatformOperator.template_fields, "spec", "adapter", "overrides")
    ui_color = "#e8f0fe"

    begins_run: ClassVar[bool] = False
    """Whether this step takes the spec from its file, for the steps after it to find in the run folder."""

    def __init__(
        self,
        *,
        spec: str,
        adapter: str | None = None,
        overrides: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.adapter = adapter
        self.overrides = overrides

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Run the step; a small summary goes to XCom."""
        with lasting_errors_fail_at_once():
            return self.run_step(self.step_input(context))

    def run_step(self, step: StepInput) -> dict[str, Any]:
        """Call the step function and summarise its result."""
        raise NotImplementedError  # Each operator has its own.

    def step_input(self, context: Mapping[str, Any]) -> StepInput:
        """Spec, run folder and settings of this task."""
        settings = self.settings()
        adapter = self.adapter or load_spec(Path(self.spec)).name
        run = RunFolder.of(settings.work_dir, adapter, run_key_of(context))
        spec = first_spec(self.spec, self.overrides) if self.begins_run else run_spec(self.spec, self.overrides, run)
        if spec.name != adapter:
            raise InvalidSpec(
                f"{self.spec}: name is {spec.name!r} now, this run is for {adapter!r}: run the new name's DAG"
            )
        return StepInput(spec=spec, run=run, settings=settings, context=context)

"""Where a step's spec comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_airflow.spec_source import first_spec, run_spec
from lorafleet_pipeline.exceptions import InvalidSpec
from lorafleet_pipeline.run_folder import RunFolder
from tests.airflow.conftest import WriteSpec

NO_OVERRIDES = {"training.steps": None, "training.learning_rate": None, "method.r": None}


def test_values_of_the_form_replace_those_of_the_spec(write_spec: WriteSpec) -> None:
    spec = first_spec(str(write_spec()), {**NO_OVERRIDES, "training.steps": 7, "method.r": 4})
    assert (spec.training.steps, spec.method.r) == (7, 4)


def test_fields_left_empty_change_nothing(write_spec: WriteSpec) -> None:
    path = str(write_spec())
    assert first_spec(path, NO_OVERRIDES) == first_spec(path, None)


def test_a_value_out_of_bounds_names_key_and_run(write_spec: WriteSpec) -> None:
    with pytest.raises(InvalidSpec, match=r"training\.steps of this run.*training\.steps"):
        first_spec(str(write_spec()), {"training.steps": 0})


def test_later_steps_keep_the_spec_the_run_began_with(write_spec: WriteSpec, tmp_path: Path) -> None:
    path, run = write_spec(training={"steps": 5}), RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.spec_file.write_text(first_spec(str(path), None).to_yaml())
    write_spec(training={"steps": 6})
    assert run_spec(str(path), None, run).training.steps == 5


def test_a_step_on_its_own_reads_the_file(write_spec: WriteSpec, tmp_path: Path) -> None:
    spec = run_spec(str(write_spec()), {"training.steps": 3}, RunFolder(tmp_path / "none"))
    assert spec.training.steps == 3

"""Options of the stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.options import AIRFLOW_COMPONENTS, StackOptions, expand_components


def test_airflow_stands_for_its_four_components() -> None:
    assert expand_components(["airflow", "s3"]) == ("s3", *AIRFLOW_COMPONENTS)


def test_unknown_component_is_named() -> None:
    with pytest.raises(StackError, match="unknown component postgres: choose among"):
        StackOptions(components=expand_components(["s3", "postgres"]))


def test_options_survive_their_file(tmp_path: Path) -> None:
    options = StackOptions(components=("s3",), model="some/model", dags=str(tmp_path), ports={"s3": 9000})
    options.write(tmp_path / "options.json")
    assert StackOptions.read(tmp_path / "options.json") == options


def test_dag_folder_of_the_repository_is_found() -> None:
    assert StackOptions().dags_folder == Path(__file__).parents[3] / "dags"


def test_missing_dag_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="does not exist: correct `--dags`"):
        StackOptions(dags=str(tmp_path / "absent"))


def test_paths_are_those_of_the_folder_where_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model", "dags"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    options = StackOptions(model="./model", dags="dags")
    assert (options.model, options.dags) == (str(tmp_path / "model"), str(tmp_path / "dags"))
    assert StackOptions(model="some/hub-id").model == "some/hub-id"


def test_ports_are_looked_at_before_anything_is_started() -> None:
    with pytest.raises(StackError, match="port 99999 for s3 is not between"):
        StackOptions(ports={"s3": 99_999})


def test_damaged_options_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "options.json").write_text("{")
    with pytest.raises(StackError, match=r"options\.json is damaged: `lorafleet down` and"):
        StackOptions.read(tmp_path / "options.json")

"""Specs become DAGs; broken ones become DAGs that say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.exceptions import ParamValidationError
from airflow.sdk import DAG, Asset

from lorafleet_airflow.dag_factory import build_adapter_dags
from lorafleet_airflow.exceptions import BrokenSpecWarning
from lorafleet_airflow.settings import BROKEN_SPEC_TAG, TRAINING_POOL
from lorafleet_pipeline.exceptions import InvalidSetting
from tests.airflow.conftest import WriteSpec


def _only(specs: Path) -> DAG:
    (dag,) = build_adapter_dags(specs).values()
    return dag


def _edges(dag: DAG) -> dict[str, set[str]]:
    return {task.task_id: set(task.downstream_task_ids) for task in dag.tasks}


def test_a_spec_becomes_the_five_steps_in_order(specs: Path, write_spec: WriteSpec) -> None:
    write_spec()
    assert _edges(_only(specs)) == {
        "validate": {"train"},
        "train": {"evaluate"},
        "evaluate": {"register"},
        "register": {"promote"},
        "promote": set(),
    }


def test_the_dag_carries_owner_tags_and_a_page(specs: Path, write_spec: WriteSpec) -> None:
    write_spec(owner="nlp", tags=["news"])
    dag = _only(specs)
    assert dag.dag_id == "adapter_summaries"
    assert {"lorafleet", "adapter", "news"} == set(dag.tags)
    assert {task.owner for task in dag.tasks} == {"nlp"}
    assert "summaries" in str(dag.doc_md)


def test_model_work_takes_a_slot_of_the_training_pool_and_training_is_retried(
    specs: Path, write_spec: WriteSpec
) -> None:
    write_spec()
    dag = _only(specs)
    assert {task.task_id for task in dag.tasks if task.pool == TRAINING_POOL} == {"train", "evaluate"}
    assert dag.get_task("train").retries == 2


def test_an_approval_stands_before_the_promotion(specs: Path, write_spec: WriteSpec) -> None:
    write_spec(promotion={"policy": "approval"})
    edges = _edges(_only(specs))
    assert edges["register"] == {"approve"}
    assert edges["approve"] == {"promote"}


class _Finished:
    """The part of a task instance that templates read: what the steps before it gave back."""

    def xcom_pull(self, task_ids: str) -> dict[str, object]:
        results: dict[str, dict[str, object]] = {"register": {"version": 3}, "evaluate": {"base": 0.1}}
        return results[task_ids]


@pytest.mark.parametrize("name", ["2024", "None", "1e3"])
def test_a_name_that_spells_another_value_reaches_every_step_as_text(
    specs: Path, write_spec: WriteSpec, name: str
) -> None:
    write_spec(name=name, promotion={"policy": "approval"})
    dag = _only(specs)
    context = {"params": dag.params.dump(), "ti": _Finished()}
    for task in dag.tasks:
        task.render_template_fields(context)
        assert (task.task_id, task.adapter) == (task.task_id, name)
    assert dag.get_task("promote").version == 3


@pytest.mark.parametrize("policy", ["auto", "manual", "approval"])
def test_the_promote_task_knows_the_policy(specs: Path, write_spec: WriteSpec, policy: str) -> None:
    write_spec(promotion={"policy": policy})
    assert _only(specs).get_task("promote").policy == policy


def test_a_cron_expression_schedules(specs: Path, write_spec: WriteSpec) -> None:
    write_spec(schedule="15 3 * * *")
    assert "15 3 * * *" in repr(_only(specs).timetable)


def test_the_dataset_asset_schedules(specs: Path, write_spec: WriteSpec) -> None:
    write_spec(schedule="dataset")
    assert [asset.uri for asset in _only(specs).schedule] == ["s3://datasets/summaries/train.jsonl"]


def test_adapters_trained_on_the_same_rows_share_the_asset(specs: Path, write_spec: WriteSpec) -> None:
    write_spec("a", name="a", schedule="dataset")
    write_spec("b", name="b", schedule="dataset")
    first, second = (dag.schedule[0] for dag in build_adapter_dags(specs).values())
    assert isinstance(first, Asset)
    assert (first.name, first.uri) == (second.name, second.uri)


def test_the_form_refuses_what_the_spec_would_refuse(specs: Path, write_spec: WriteSpec) -> None:
    write_spec()
    params = _only(specs).params
    assert params.get_param("steps").resolve(30) == 30
    assert params.get_param("steps").resolve(None) is None
    for name, value in (("steps", 0), ("rank", 1000), ("learning_rate", 0), ("force", "perhaps")):
        with pytest.raises(ParamValidationError):
            params.get_param(name).resolve(value)


BROKEN = {
    "an unknown key": ("name: bad\nbase_modle: x\n", "base_modle: unknown key"),
    "no yaml": ("{name: [", "is no YAML"),
    "a list": ("- 1\n", "a mapping of keys is needed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_spec_leaves_the_others_and_says_what_is_wrong(
    specs: Path, write_spec: WriteSpec, called_by_hand: None, case: str
) -> None:
    text, reason = BROKEN[case]
    write_spec()
    (specs / "bad.yaml").write_text(text)
    with pytest.warns(BrokenSpecWarning, match=reason):
        dags = build_adapter_dags(specs)
    assert set(dags) == {"adapter_summaries", "adapter_bad"}
    broken = dags["adapter_bad"]
    assert BROKEN_SPEC_TAG in broken.tags
    (task,) = broken.tasks
    with pytest.raises(Exception, match=rf"bad\.yaml.*{reason}"):
        task.execute({})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schedule": "61 * * * *"}, "61"),
        ({"promotion": {"canary": 0.1}}, "canary"),
    ],
)
def test_a_spec_that_makes_no_dag_is_broken_too(
    specs: Path, write_spec: WriteSpec, changes: dict[str, object], reason: str
) -> None:
    write_spec("file", **changes)
    with pytest.warns(BrokenSpecWarning, match=rf"file\.yaml.*{reason}"):
        dags = build_adapter_dags(specs)
    assert [dag.task_ids for dag in dags.values()] == [["read_spec"]]


def test_of_two_files_with_one_name_the_first_keeps_it(specs: Path, write_spec: WriteSpec) -> None:
    write_spec("a")
    write_spec("b")
    with pytest.warns(BrokenSpecWarning, match=r"b\.yaml: name 'summaries' is taken by .*a\.yaml"):
        dags = build_adapter_dags(specs)
    assert set(dags) == {"adapter_summaries", "adapter_summaries-b"}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="LORAFLEET_ADAPTERS_DIR"):
        build_adapter_dags(tmp_path / "nowhere")

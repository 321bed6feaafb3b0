"""Follows up every move of a champion, by whomever: all pods serve it and it answers, or it goes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from lorafleet_airflow.assets import any_champion
from lorafleet_airflow.operators.confirm import ConfirmPromotionOperator, ListPromotionsOperator
from lorafleet_airflow.settings import TAG, adapters_folders

with DAG(
    dag_id="promote_adapters",
    schedule=any_champion(*adapters_folders(__file__)),
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    # A watcher lives only while the DAG that it starts is not paused.
    is_paused_upon_creation=False,
    max_active_runs=1,
    tags={TAG, "serving"},
    doc_md=__doc__,
    params={
        "adapters": Param(
            [],
            type=["null", "array"],
            items={"type": "string"},
            title="Adapters",
            description="Adapters to look at in a run by hand; none means all with a champion",
        )
    },
    default_args={"owner": TAG, "retries": 2, "retry_delay": timedelta(seconds=15)},
    render_template_as_native_obj=True,
):
    moved = ListPromotionsOperator(task_id="moved", adapters="{{ params.adapters }}")
    # With a word before it, a name such as 2024 is no native value: Airflow takes a label of text alone.
    ConfirmPromotionOperator.partial(task_id="confirm", map_index_template="adapter {{ task.adapter }}").expand(
        adapter=moved.output
    )

"""Compares what the registry names with what the pods serve, tells pods that differ, and fails if they still do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from lorafleet_airflow.operators.reconcile import ReconcileServingOperator
from lorafleet_airflow.settings import TAG

with DAG(
    dag_id="reconcile_serving",
    schedule="*/10 * * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,
    tags={TAG, "serving"},
    doc_md=__doc__,
    default_args={"owner": TAG, "retries": 1, "retry_delay": timedelta(seconds=30)},
):
    ReconcileServingOperator(task_id="reconcile")

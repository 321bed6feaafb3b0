"""One DAG for each AdapterSpec of some folders.

    validate >> train >> evaluate >> register (>> approve) >> promote

A spec that cannot be read becomes a DAG of one task that fails naming file and key, tagged `broken-spec`, so that
the other adapters keep their DAGs. Nothing heavy is imported: Airflow parses this over and over.
"""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.exceptions import AirflowTimetableInvalid
from airflow.sdk import DAG, Param
from airflow.sdk.definitions.template import literal

from lorafleet_airflow.assets import dataset_asset, versions_asset
from lorafleet_airflow.dag_docs import adapter_doc, broken_spec_doc
from lorafleet_airflow.exceptions import BrokenSpecWarning
from lorafleet_airflow.operators.broken_spec import BrokenSpecOperator
from lorafleet_airflow.operators.evaluate import EvaluateAdapterOperator
from lorafleet_airflow.operators.promote import PromoteAdapterOperator
from lorafleet_airflow.operators.register import RegisterAdapterOperator
from lorafleet_airflow.operators.train import TrainAdapterOperator
from lorafleet_airflow.operators.validate import ValidateDatasetOperator
from lorafleet_airflow.settings import BROKEN_SPEC_TAG, TAG, TRAINING_POOL
from lorafleet_airflow.spec_folder import SpecFile, broken, read_spec_folders
from lorafleet_pipeline.exceptions import InvalidSpec
from lorafleet_pipeline.run_identity import dag_id
from lorafleet_pipeline.spec import AdapterSpec, PromotionPolicy

_START = datetime(2025, 1, 1, tzinfo=UTC)

_REGISTERED_VERSION = "{{ ti.xcom_pull(task_ids='register')['version'] }}"

_OVERRIDES = {
    "training.steps": "{{ params.steps }}",
    "training.learning_rate": "{{ params.learning_rate }}",
    "method.r": "{{ params.rank }}",
}

_APPROVAL_BODY = """\
{% set report = ti.xcom_pull(task_ids='evaluate') %}
| base | candidate | lift | interval |
|---|---|---|---|
| {{ report.get('base') }} | {{ report.get('candidate') }} | {{ report.get('lift') }} | {{ report.get('interval') }} |
"""


def build_adapter_dags(*folders: Path) -> dict[str, DAG]:
    """DAGs by id, for a DAG file's `globals().update(...)`.

    Raises:
        InvalidSetting: a folder does not exist.
    """
    dags: dict[str, DAG] = {}
    for item in read_spec_folders(*folders):
        dag = _build(item)
        dags[dag.dag_id] = dag
    return dags


def _build(item: SpecFile) -> DAG:
    if item.spec is not None:
        try:
            return _adapter_dag(item.spec, item.path)
        except (InvalidSpec, AirflowTimetableInvalid, ValueError) as error:
            item = broken(item, f"{item.path}: {' '.join(str(error).split())}")
    warnings.warn(str(item.error), BrokenSpecWarning, stacklevel=3)
    return _broken_dag(item)


def _adapter_dag(spec: AdapterSpec, path: Path) -> DAG:
    if spec.promotion.canary is not None:
        raise InvalidSpec("promotion.canary: the DAG cannot roll out by shares: remove the key")
    dag = DAG(
        dag_id=dag_id(spec.name),
        schedule=_schedule(spec),
        # A DAG is taken from the globals of its DAG file alone: one that does not validate must not slip in.
        auto_register=False,
        start_date=_START,
        catchup=False,
        max_active_runs=1,
        tags={TAG, "adapter", *spec.tags},
        doc_md=adapter_doc(spec, path),
        params=_form(spec),
        default_args={"owner": spec.owner, "retries": 1, "retry_delay": timedelta(seconds=10)},
        # The form's numbers and flags reach the operators as what they are, not as text.
        render_template_as_native_obj=True,
    )
    with dag:
        _steps(spec, path)
    dag.validate()
    return dag


def _steps(spec: AdapterSpec, path: Path) -> None:
    name = _name(spec)
    given: dict[str, Any] = {"spec": str(path), "adapter": name, "overrides": _OVERRIDES}
    validate = ValidateDatasetOperator(task_id="validate", inlets=[dataset_asset(spec)], **given)
    train = TrainAdapterOperator(
        task_id="train",
        force="{{ params.force }}",
        dry_run="{{ params.dry_run }}",
        pool=TRAINING_POOL,
        retries=2,
        **given,
    )
    # It loads the same base model on the same device, so it takes the same slot.
    evaluate = EvaluateAdapterOperator(task_id="evaluate", pool=TRAINING_POOL, **given)
    register = RegisterAdapterOperator(task_id="register", retries=2, outlets=[versions_asset(spec.name)], **given)
    promote = PromoteAdapterOperator(
        task_id="promote", adapter=name, version=_REGISTERED_VERSION, policy=spec.promotion.policy.value
    )
    last = validate >> train >> evaluate >> register
    if spec.promotion.policy is PromotionPolicy.APPROVAL:
        last = last >> _approval(spec)
    _ = last >> promote


def _approval(spec: AdapterSpec) -> Any:
    # Imported where a spec asks for it: the module costs every parse of the others.
    from lorafleet_airflow.operators.approve import ApproveVersionOperator

    return ApproveVersionOperator(
        task_id="approve",
        adapter=_name(spec),
        version=_REGISTERED_VERSION,
        subject=f"Promote {spec.name} version {_REGISTERED_VERSION}?",
        body=_APPROVAL_BODY,
    )


def _name(spec: AdapterSpec) -> Any:
    # Rendered as a native value, a name such as 2024 or None would come out as what it spells.
    return literal(spec.name)


def _schedule(spec: AdapterSpec) -> Any:
    if spec.schedule == "dataset":
        return [dataset_asset(spec)]
    return spec.schedule


def _form(spec: AdapterSpec) -> dict[str, Param]:
    return {
        "force": Param(
            False, type="boolean", title="Force", description="Train even where spec and data are unchanged"
        ),
        "dry_run": Param(False, type="boolean", title="Dry run", description="Validate the dataset and stop"),
        "steps": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Steps",
            description=f"Training steps of this run; the spec has {spec.training.steps}",
        ),
        "learning_rate": Param(
            None,
            type=["null", "number"],
            exclusiveMinimum=0,
            maximum=1,
            title="Learning rate",
            description=f"Learning rate of this run; the spec has {spec.training.learning_rate:g}",
        ),
        "rank": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=256,
            title="Rank",
            description=f"Rank of this run's adapter; the spec has {spec.method.r}",
        ),
    }


def _broken_dag(item: SpecFile) -> DAG:
    error = item.error or "the spec cannot be read"
    dag = DAG(
        dag_id=dag_id(item.name),
        schedule=None,
        auto_register=False,
        tags={TAG, "adapter", BROKEN_SPEC_TAG},
        doc_md=broken_spec_doc(error),
        default_args={"owner": TAG, "retries": 0},
    )
    with dag:
        BrokenSpecOperator(task_id="read_spec", error=error)
    return dag

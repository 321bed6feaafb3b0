"""The page that Airflow shows about an adapter's DAG."""

from __future__ import annotations

from pathlib import Path

from lorafleet_pipeline.spec import AdapterSpec, PromotionPolicy

_PROMOTION = {
    PromotionPolicy.AUTO: "moves the alias `champion` to a version whose gate passed",
    PromotionPolicy.APPROVAL: "asks a person first, under *Required actions*",
    PromotionPolicy.MANUAL: "is left to a person: move the alias `champion` in MLflow, or `lorafleet promote`",
}


def adapter_doc(spec: AdapterSpec, path: Path) -> str:
    """What the DAG of a spec does, as Markdown."""
    method, training, gate = spec.method, spec.training, spec.gate
    rows = {
        "Spec": f"`{path}`",
        "Base model": f"`{spec.base_model}`",
        "Training rows": f"`{spec.dataset.train}`",
        "Method": f"{method.type.value}, rank {method.r}, alpha {method.alpha:g}, base in {method.base_form.value}",
        "Training": f"{training.steps} steps of {training.batch_size} x {training.gradient_accumulation} rows, "
        f"learning rate {training.learning_rate:g}",
        "Metric": f"{spec.evaluation.metric.value} on at most {spec.evaluation.limit or 'all'} test rows",
        "Gate": f"lift over the base at least {gate.min_lift:g}, loss against the champion at most "
        f"{gate.max_regression:g}",
        "Promotion": _PROMOTION[spec.promotion.policy],
        "Owner": spec.owner,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""### Adapter `{spec.name}`

| | |
|---|---|
{table}

**validate** checks the rows, **train** makes the adapter in a process of its own (a retry goes on with it),
**evaluate** compares it with base and champion and signs the gate's verdict, **register** puts it into MLflow,
**promote** makes it the champion. A version whose gate failed is registered for inspection, and the run fails naming
the reason. Unchanged spec and data train nothing new, unless *force* is set.
"""


def broken_spec_doc(error: str) -> str:
    """What to do about a spec that could not be read, as Markdown."""
    return f"""### This spec cannot be used

    {error}

Mend the file; the DAG comes back by itself at the next look at the folder.
"""

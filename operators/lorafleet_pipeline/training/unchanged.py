"""Finding the registered version that makes a training unnecessary."""

from __future__ import annotations

from lorafleet_contract.aliases import Stage
from lorafleet_contract.digest import base_digest
from lorafleet_contract.registry import ModelVersion, RegistryClient
from lorafleet_contract.states import GateStatus
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.base_models import resolve_base_model
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.training.job import TrainingIdentity
from lorafleet_pipeline.training.result import TrainingResult


def find_unchanged(spec: AdapterSpec, identity: TrainingIdentity, registry: RegistryClient) -> TrainingResult | None:
    """The newest servable version of the same spec, data and base, as a result; None if there is none."""
    same = [version for version in registry.search_versions(spec.name) if _is_same(version, identity)]
    if not same:
        return None
    base = base_digest(resolve_base_model(spec.base_model))
    same = [version for version in same if version.tags.get(Tag.LORA_BASE_DIGEST) == base]
    if not same:
        return None
    newest = max(same, key=lambda version: version.version)
    return TrainingResult(
        adapter_digest=newest.tags[Tag.LORA_DIGEST],
        spec_digest=identity.spec_digest,
        dataset_digest=identity.dataset_digest,
        base_model=newest.tags.get(Tag.LORA_BASE_MODEL, spec.base_model),
        base_digest=base,
        method=newest.tags.get(Tag.LORA_METHOD, spec.method.type),
        trained_on=newest.tags.get(Tag.LORA_TRAINED_ON, ""),
        mlflow_run_id=newest.run_id or None,
        skipped_version=newest.version,
    )


def _is_same(version: ModelVersion, identity: TrainingIdentity) -> bool:
    tags = version.tags
    return (
        tags.get(Tag.SPEC_DIGEST) == identity.spec_digest
        and tags.get(Tag.DATASET_DIGEST) == identity.dataset_digest
        and tags.get(Tag.GATE_STATUS) in {GateStatus.PASSED, GateStatus.WAIVED}
        and version.stage is not Stage.ARCHIVED
    )

"""Finding the registered version that makes a training unnecessary."""

from __future__ import annotations

import logging

from lorafleet_contract.aliases import Stage
from lorafleet_contract.digest import base_digest
from lorafleet_contract.registry import ModelVersion
from lorafleet_contract.states import GateStatus, ServeState
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.base_models import resolve_base_model
from lorafleet_pipeline.exceptions import GateRefused, GateReportInvalid, ObjectMissing
from lorafleet_pipeline.registry.gate_check import read_gate_report
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.training.job import TrainingIdentity
from lorafleet_pipeline.training.result import TrainingResult

logger = logging.getLogger(__name__)


def find_unchanged(spec: AdapterSpec, identity: TrainingIdentity, settings: PlatformSettings) -> TrainingResult | None:
    """The newest servable version of the same spec, data and base, as a result; None if there is none.

    Servable is what no pod refused and no one withdrew, and whose gate passed or was waived: by its signed report
    where the settings have the key, else by its tag.

    Raises:
        RegistryError: the registry could not be asked.
        StorageError: a gate report could not be read, though it is there.
    """
    versions = settings.registry().search_versions(spec.name)
    same = [version for version in versions if _is_same(version, identity)]
    if not same:
        return None
    base = base_digest(resolve_base_model(spec.base_model))
    same = [version for version in same if version.tags.get(Tag.LORA_BASE_DIGEST) == base]
    newest_first = sorted(same, key=lambda version: version.version, reverse=True)
    newest = next((version for version in newest_first if _has_servable_gate(version, settings)), None)
    if newest is None:
        return None
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
        and tags.get(Tag.SERVE_STATE) != ServeState.REFUSED
        and version.stage is not Stage.ARCHIVED
    )


def _has_servable_gate(version: ModelVersion, settings: PlatformSettings) -> bool:
    """Whether the signed report says what the tag does, which anyone may edit."""
    if not settings.gate_key:
        return True
    try:
        status = read_gate_report(settings.registry(), version, settings).status
        doubt = None if status.servable else f"its tag says {version.tags[Tag.GATE_STATUS]}, its gate report {status}"
    except (GateRefused, GateReportInvalid, ObjectMissing) as error:
        doubt = str(error)
    if doubt is not None:
        logger.warning("version %s of %s does not save a training: %s", version.version, version.name, doubt)
    return doubt is None

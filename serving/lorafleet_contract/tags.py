"""Names of registry tags. The pipeline writes the first group, the controller the second."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Tag(StrEnum):
    """Tags of a registered model or of one of its versions."""

    # On a version, by the pipeline.
    LORA_DIGEST = "lora.digest"
    LORA_RANK = "lora.rank"
    LORA_ALPHA = "lora.alpha"
    LORA_METHOD = "lora.method"
    LORA_TARGET_MODULES = "lora.target_modules"
    LORA_BASE_MODEL = "lora.base_model"
    LORA_BASE_DIGEST = "lora.base_digest"
    LORA_TRAINED_ON = "lora.trained_on"
    DATASET_DIGEST = "dataset.digest"
    SPEC_DIGEST = "spec.digest"
    CONTRACT_VERSION = "contract.version"
    GATE_STATUS = "gate.status"
    GATE_REASON = "gate.reason"
    GATE_WAIVED_BY = "gate.waived_by"
    RUN_KEY = "pipeline.run_key"
    """Identity of the pipeline run that registered the version: a retry finds it by this."""

    # On a version, by the controller.
    SERVE_STATE = "serve.state"
    SERVE_ERROR = "serve.error"
    SERVE_PROMOTED_AT = "serve.promoted_at"

    # On the registered model.
    ROLLOUT_CANARY = "rollout.canary"
    """Share of live traffic, 0 to 1, that the challenger answers."""
    CONTROLLER_OBSERVED = "controller.observed"
    """What the controller last saw, as JSON: it tells which changed last, stage or alias."""


def missing_adapter_tags(tags: Mapping[str, str]) -> list[str]:
    """Tags of a version without which it is no adapter, and no pod serves it."""
    return [tag.value for tag in (Tag.LORA_DIGEST, Tag.LORA_BASE_DIGEST) if not tags.get(tag)]

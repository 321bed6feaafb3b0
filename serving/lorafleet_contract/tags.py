"""Names of registry tags. The pipeline writes the first group, the controller the second."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from lorafleet_contract.exceptions import InvalidTag

OWN_PREFIXES = ("serve.", "controller.")
"""Of the tags that the controller writes for people and for itself: a change of them gives nobody a reason to look."""


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
    ROLLOUT_STOPPED = "rollout.stopped"
    """Why the last canary was ended; written by the controller, and removed when another begins."""
    CONTROLLER_OBSERVED = "controller.observed"
    """What the controller last saw, as JSON: it tells which changed last, stage or alias."""


def canary_share(tags: Mapping[str, str]) -> float:
    """Share of live traffic that a registered model's tags give its challenger; 0 where they say nothing.

    Raises:
        InvalidTag: the tag is no number from 0 to 1.
    """
    text = tags.get(Tag.ROLLOUT_CANARY) or "0"
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise InvalidTag(f"the tag {Tag.ROLLOUT_CANARY} is {text[:40]!r}, it must be a share from 0 to 1, such as 0.1")
    return share


def missing_adapter_tags(tags: Mapping[str, str]) -> list[str]:
    """Tags of a version without which it is no adapter, and no pod serves it."""
    return [tag.value for tag in (Tag.LORA_DIGEST, Tag.LORA_BASE_DIGEST) if not tags.get(tag)]

"""The registry aliases that carry meaning, and the registry stages that map to them."""

from __future__ import annotations

from enum import StrEnum


class Alias(StrEnum):
    """Aliases of a registered model that the platform reads or writes."""

    CHAMPION = "champion"
    """What the bare adapter name should serve; moved by people and DAGs."""
    CHALLENGER = "challenger"
    """Takes a share of live traffic when the tag `rollout.canary` is above 0."""
    SHADOW = "shadow"
    """Receives mirrored traffic; never answers."""
    LIVE = "live"
    """The last champion that every pod took; written by the controller alone."""
    PREVIOUS = "previous"
    """The `live` before it; written by the controller alone."""


CONTROLLER_ALIASES = frozenset({Alias.LIVE, Alias.PREVIOUS})
"""Aliases that only the controller writes."""


class Stage(StrEnum):
    """MLflow's model stages."""

    NONE = "None"
    STAGING = "Staging"
    PRODUCTION = "Production"
    ARCHIVED = "Archived"


STAGE_ALIASES = {Stage.PRODUCTION: Alias.CHAMPION, Stage.STAGING: Alias.CHALLENGER}
"""The one-way map from a stage to the alias it sets. `Archived` withdraws a version instead."""

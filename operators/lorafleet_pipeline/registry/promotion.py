"""Promotion and rollback: one alias moves, and every pod is seen to follow.

Loads neither MLflow nor boto3 unless a gate report must be read: a rollback has no second to spare.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorafleet_contract.aliases import CONTROLLER_ALIASES, Alias, Stage
from lorafleet_contract.exceptions import RegistryNotFound
from lorafleet_contract.registry import ModelVersion, RegistryClient
from lorafleet_contract.states import ServeState
from lorafleet_contract.tags import Tag, missing_adapter_tags
from lorafleet_pipeline.exceptions import PromotionError
from lorafleet_pipeline.registry.actor import Actor, registry_as
from lorafleet_pipeline.settings import PlatformSettings

OnProgress = Callable[[Mapping[str, str]], None]
"""Told, while pods are waited for, the state of each by its address."""


@dataclass(frozen=True)
class Promotion:
    """An alias that was moved, and the pods that followed it; none where no pod serves the base."""

    name: str
    version: int
    alias: str
    digest: str
    before: int | None
    pods: tuple[str, ...]
    seconds: float


def promote(
    name: str,
    version: int,
    settings: PlatformSettings,
    *,
    alias: str = Alias.CHAMPION,
    wait_s: float = 60.0,
    on_progress: OnProgress | None = None,
    waive: str | None = None,
    actor: Actor | None = None,
) -> Promotion:
    """Point an alias at a version and wait until every pod has taken it.

    `waive` gives the reason for serving a version whose gate failed. A version that a pod refuses keeps the
    alias; the pods go on serving `live`.

    Raises:
        PromotionError: there is no such version, the alias is the controller's, or a pod refuses.
        GateRefused: the gate did not pass.
        PromotionTimeout: a pod did not take it in time.
    """
    from lorafleet_pipeline.registry.gate_check import check_gate  # Here, since a rollback has no use for it.

    if alias in CONTROLLER_ALIASES:
        raise PromotionError(f"alias {alias!r} is moved by the controller alone: promote to 'champion' instead")
    actor = actor or Actor.person()
    registry = registry_as(settings, actor)
    item = _version(registry, name, version)
    check_gate(registry, item, settings, waive, actor)
    before = _aliases(registry, name).get(alias)
    return _move(registry, item, alias, before, settings, wait_s, on_progress)


def had_its_turn(name: str, version: int, registry: RegistryClient) -> bool:
    """Whether a version was live, or refused, and is the champion no longer: another was preferred to it, by whomever.

    Its gate compared it with the champion of its own time, so that it says nothing about the one of today. A version
    that pods failed to load had no turn: the reason may have passed.

    Raises:
        PromotionError: there is no such version.
    """
    tags = _version(registry, name, version).tags
    was_tried = Tag.SERVE_PROMOTED_AT in tags or tags.get(Tag.SERVE_STATE) == ServeState.REFUSED
    return was_tried and _aliases(registry, name).get(Alias.CHAMPION) != version


def rollback(
    name: str,
    settings: PlatformSettings,
    *,
    to: int | None = None,
    wait_s: float = 60.0,
    on_progress: OnProgress | None = None,
    actor: Actor | None = None,
) -> Promotion:
    """Point `champion` back: at `live` where the champion was never taken by every pod, else at `previous`.

    A version that was withdrawn is passed over, unless `to` names it.

    Raises:
        PromotionError: there is nothing to go back to, or a pod refuses it.
        PromotionTimeout: a pod did not take it in time.
    """
    registry = registry_as(settings, actor or Actor.person())
    aliases = _aliases(registry, name)
    champion, live = aliases.get(Alias.CHAMPION), aliases.get(Alias.LIVE)
    if to is not None:
        item = _version(registry, name, to)
    else:
        item = _way_back(registry, name, (live if live != champion else None, aliases.get(Alias.PREVIOUS)))
    return _move(registry, item, Alias.CHAMPION, champion, settings, wait_s, on_progress, has_served=to is None)


def _move(
    registry: RegistryClient,
    item: ModelVersion,
    alias: str,
    before: int | None,
    settings: PlatformSettings,
    wait_s: float,
    on_progress: OnProgress | None,
    *,
    has_served: bool = False,
) -> Promotion:
    began = time.monotonic()

    def move() -> None:
        if before != item.version:
            registry.set_alias(item.name, alias, item.version)

    if has_served:
        move()  # At once: what is needed to watch the pods is loaded while they follow.
    from lorafleet_pipeline.registry.takeover import Takeover

    with Takeover(item, alias, settings) as takeover:
        if not has_served:
            takeover.note_refusals()
            move()
        pods = takeover.wait(wait_s, on_progress)
    digest = item.tags.get(Tag.LORA_DIGEST, "")
    return Promotion(item.name, item.version, alias, digest, before, pods, time.monotonic() - began)


def _aliases(registry: RegistryClient, name: str) -> Mapping[str, int]:
    try:
        return registry.get_model(name).aliases
    except RegistryNotFound as error:
        raise PromotionError(f"there is no adapter {name!r}: see `lorafleet adapters`") from error


def _version(registry: RegistryClient, name: str, version: int) -> ModelVersion:
    try:
        item = registry.get_version(name, version)
    except RegistryNotFound as error:
        raise PromotionError(f"there is no version {version} of {name!r}: see `lorafleet adapters`") from error
    if missing := missing_adapter_tags(item.tags):
        raise PromotionError(f"version {version} of {name!r} is no adapter, for it lacks {' and '.join(missing)}")
    return item


def _way_back(registry: RegistryClient, name: str, candidates: Sequence[int | None]) -> ModelVersion:
    """The first of the candidates that was not withdrawn."""
    for version in candidates:
        item = None if version is None else _version(registry, name, version)
        if item is not None and item.stage is not Stage.ARCHIVED:
            return item
    raise PromotionError(
        f"{name} has no previous version: name one with --to, see `lorafleet history {name}` for versions"
    )

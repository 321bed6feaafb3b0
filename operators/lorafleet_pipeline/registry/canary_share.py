"""Canaries as people and DAGs begin, widen and end them: the challenger's alias, and the tag that gives it a share.

The share is of the whole fleet. Pods follow it as they follow aliases; one that finds the challenger bad stops asking
it at once, and the controller then takes the share back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

from lorafleet_contract.aliases import Alias
from lorafleet_contract.exceptions import InvalidTag, RegistryNotFound
from lorafleet_contract.fleet import CanaryReport
from lorafleet_contract.registry import RegisteredModel, RegistryClient
from lorafleet_contract.tags import Tag, canary_share
from lorafleet_pipeline.exceptions import PromotionError
from lorafleet_pipeline.registry.actor import Actor, registry_as
from lorafleet_pipeline.registry.pod_states import PodStates
from lorafleet_pipeline.registry.promotion import OnProgress, promote
from lorafleet_pipeline.settings import PlatformSettings


@dataclass(frozen=True)
class CanaryState:
    """What the registry says of an adapter's canary, and what each pod does."""

    name: str
    challenger: int | None
    share: float
    stopped: str | None
    """Why the last one was ended by the controller."""
    pods: Mapping[str, CanaryReport | None] = field(default_factory=dict)
    """By address; None for a pod that has no canary, or does not answer."""


def begin_canary(
    name: str,
    version: int,
    share: float,
    settings: PlatformSettings,
    *,
    wait_s: float = 60.0,
    on_progress: OnProgress | None = None,
    actor: Actor | None = None,
) -> CanaryState:
    """Make a version the challenger, and have it answer a share once every pod has it ready.

    Raises:
        PromotionError: there is no such version, no champion to compare it with, or a pod refuses it.
        GateRefused: its gate did not pass.
        PromotionTimeout: a pod did not take it in time.
    """
    _check(share)
    champion = _model(name, settings, actor).aliases.get(Alias.CHAMPION)
    if champion is None or champion == version:
        told = "no champion" if champion is None else f"version {version} as its champion"
        raise PromotionError(f"{name} has {told}: a canary compares a challenger with another version, the champion")
    promote(name, version, settings, alias=Alias.CHALLENGER, wait_s=wait_s, on_progress=on_progress, actor=actor)
    return set_share(name, share, settings, actor=actor)


def set_share(name: str, share: float, settings: PlatformSettings, *, actor: Actor | None = None) -> CanaryState:
    """Change the challenger's share; 0 ends the canary.

    Raises:
        PromotionError: there is no such adapter, or it has no challenger.
    """
    _check(share)
    if share > 0 and Alias.CHALLENGER not in _model(name, settings, actor).aliases:
        raise PromotionError(f"{name} has no challenger: name its version, `lorafleet canary {name} VERSION`")
    _registry(settings, actor).set_model_tag(name, Tag.ROLLOUT_CANARY, f"{share:g}")
    with closing(PodStates(settings)) as states:
        states.nudge(name)
    return canary_state(name, settings)


def canary_state(name: str, settings: PlatformSettings) -> CanaryState:
    """Look at the registry and at every pod.

    Raises:
        PromotionError: there is no such adapter, or a pod does not take the admin token.
    """
    model = _model(name, settings, None)
    try:
        share = canary_share(model.tags)
    except InvalidTag:
        share = 0.0  # The controller takes it back, and says why.
    with closing(PodStates(settings)) as states:
        pods = {pod.url: pod.canary(name) for pod in states.ask()}
    return CanaryState(name, model.aliases.get(Alias.CHALLENGER), share, model.tags.get(Tag.ROLLOUT_STOPPED), pods)


def _check(share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise PromotionError(f"the share is {share}, it must be from 0 to 1, such as 0.1")


def _registry(settings: PlatformSettings, actor: Actor | None) -> RegistryClient:
    return registry_as(settings, actor or Actor.person())


def _model(name: str, settings: PlatformSettings, actor: Actor | None) -> RegisteredModel:
    try:
        return _registry(settings, actor).get_model(name)
    except RegistryNotFound as error:
        raise PromotionError(f"there is no adapter {name!r}: see `lorafleet adapters`") from error

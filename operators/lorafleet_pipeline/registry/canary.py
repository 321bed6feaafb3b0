"""What the controller does about a canary: it ends one that a pod has stopped, and keeps the reason.

A pod may only stop asking the challenger, by itself and at once. That the whole fleet does is a change of the
registry, which the controller makes: one pod's verdict is enough, for all serve the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorafleet_contract.exceptions import InvalidTag
from lorafleet_contract.tags import Tag, canary_share
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot

NO_SHARE = "0"
_MAX_REASON_LEN = 1000
_MAX_KEPT_LEN = 20
"""Longest value of the tag that is remembered: a share is shorter, and what is none is taken back."""


@dataclass(frozen=True)
class SetModelTag:
    """Set a registered model's tag, or remove it where `value` is None."""

    key: Tag
    value: str | None


def kept_share(snapshot: AdapterSnapshot) -> str | None:
    """The tag's value as it is remembered and journaled."""
    text = snapshot.tags.get(Tag.ROLLOUT_CANARY)
    return None if text is None else text[:_MAX_KEPT_LEN]


def end_canary(snapshot: AdapterSnapshot, challenger: int | None, pods: Sequence[PodState]) -> str | None:
    """Why the canary is to be ended; None where there is none, or nothing is wrong with it.

    Args:
        snapshot: the adapter.
        challenger: the version behind its alias.
        pods: what the pods say.
    """
    try:
        share = canary_share(snapshot.tags)
    except InvalidTag as error:
        return str(error)[:_MAX_REASON_LEN]
    found = _verdicts(snapshot.name, challenger, share, pods) if share > 0 else iter(())
    return next((reason[:_MAX_REASON_LEN] for reason in found), None)


def canary_tags(snapshot: AdapterSnapshot, ended: str | None) -> Iterator[SetModelTag]:
    """Tags to write about a canary that is ended for a reason, or goes on where there is none."""
    told = snapshot.tags.get(Tag.ROLLOUT_STOPPED)
    if ended is not None:
        # The reason first: who sees that there is no canary any more finds it there already.
        yield SetModelTag(Tag.ROLLOUT_STOPPED, ended)
        yield SetModelTag(Tag.ROLLOUT_CANARY, NO_SHARE)
    elif told is not None and canary_share(snapshot.tags) > 0:
        yield SetModelTag(Tag.ROLLOUT_STOPPED, None)


def _verdicts(name: str, challenger: int | None, share: float, pods: Sequence[PodState]) -> Iterator[str]:
    for pod in pods:
        canary = pod.canary(name)
        # What a pod says of another challenger or share is of before the registry changed: it will say so again.
        if canary is None or (canary.version, canary.share) != (challenger, share):
            continue
        if canary.stopped is not None:
            yield f"version {canary.version}: {canary.stopped}" + (f" ({pod.url})" if len(pods) > 1 else "")

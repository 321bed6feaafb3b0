"""What a pod reports about its adapters (`GET /v1/adapters`) and the controller aggregates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lorafleet_contract.exceptions import InvalidManifest
from lorafleet_contract.states import ServeState, Tier


@dataclass(frozen=True)
class VersionReport:
    """One version of an adapter in one pod."""

    version: int
    digest: str
    state: ServeState
    aliases: tuple[str, ...] = ()
    error: str | None = None
    tiers: tuple[Tier, ...] = ()
    pinned: bool = False
    in_flight: int = 0
    asked_at: float | None = None
    """Unix time at which the engine was last given a caller's request for it."""


@dataclass(frozen=True)
class CanaryReport:
    """The canary of one adapter in one pod."""

    version: int
    share: float
    """Of the bare name's requests that the version answers while it is not stopped, 0 to 1."""
    num_answers: int = 0
    """Those of the version that came to an end."""
    stopped: str | None = None
    """Why the pod has stopped it."""


@dataclass(frozen=True)
class ShadowReport:
    """What one pod saw of an adapter's shadow beside its champion."""

    version: int
    num_answers: int = 0
    """Requests that both answered."""
    num_same: int = 0
    """Those that both answered alike, token for token."""
    num_skipped: int = 0
    """Requests of the champion that the pod had no room or time to mirror."""
    doubt: str | None = None
    """What speaks against the shadow."""


@dataclass(frozen=True)
class AdapterReport:
    """One adapter name in one pod. `serving` is the version that the bare name reaches now, but for a canary."""

    name: str
    serving: int | None
    versions: tuple[VersionReport, ...] = ()
    canary: CanaryReport | None = None
    shadow: ShadowReport | None = None
    noticed_at: float | None = None
    """Unix time at which the pod was told of the last change of the champion, or began the look that saw it."""
    moved_at: float | None = None
    """Unix time of the last change of `serving`."""


@dataclass(frozen=True)
class HandLoadedReport:
    """An adapter that an administrator loaded into one pod, and that the registry knows nothing of."""

    name: str
    address: str
    digest: str
    tiers: tuple[Tier, ...] = ()
    pinned: bool = False
    in_flight: int = 0


@dataclass(frozen=True)
class PodReport:
    """Everything a pod says about its adapters."""

    pod_id: str
    base_model: str
    base_digest: str
    adapters: tuple[AdapterReport, ...] = ()
    registry_error: str | None = None
    """Why the pod could not read the registry when it last tried."""
    synced_at: float | None = None
    """Unix time of the last complete look at the registry, in seconds."""
    capacity: Mapping[str, int] = field(default_factory=dict)
    loaded_by_hand: tuple[HandLoadedReport, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PodReport:
        """Read a report.

        Raises:
            InvalidManifest: a field is missing, unknown or of the wrong type.
        """
        try:
            adapters = tuple(_adapter(item) for item in data["adapters"])
            by_hand = tuple(_loaded_by_hand(item) for item in data.get("loaded_by_hand", ()))
            return cls(**{**data, "adapters": adapters, "loaded_by_hand": by_hand})
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidManifest(f"pod report: {error}") from error


def _adapter(data: Mapping[str, Any]) -> AdapterReport:
    versions = tuple(_version(item) for item in data["versions"])
    canary, shadow = data.get("canary"), data.get("shadow")
    compared = {
        "canary": None if canary is None else CanaryReport(**canary),
        "shadow": None if shadow is None else ShadowReport(**shadow),
    }
    return AdapterReport(**{**data, "versions": versions, **compared})


def _loaded_by_hand(data: Mapping[str, Any]) -> HandLoadedReport:
    return HandLoadedReport(**{**data, "tiers": tuple(Tier(tier) for tier in data["tiers"])})


def _version(data: Mapping[str, Any]) -> VersionReport:
    return VersionReport(
        **{
            **data,
            "state": ServeState(data["state"]),
            "aliases": tuple(data["aliases"]),
            "tiers": tuple(Tier(tier) for tier in data["tiers"]),
        }
    )

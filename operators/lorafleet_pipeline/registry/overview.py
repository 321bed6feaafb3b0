"""What the registry wants and what the pods serve, adapter by adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorafleet_contract.aliases import Alias
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot, read_fleet
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_serving.client import PodClient, PodError, PodUnreachable

_POD_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class AdapterOverview:
    """One adapter. State, error and digest are those of the champion; `serving` is by pod address."""

    name: str
    num_versions: int
    aliases: Mapping[str, int]
    digest: str | None
    gate: str | None
    state: str | None
    error: str | None
    serving: Mapping[str, int | None]


@dataclass(frozen=True)
class FleetOverview:
    """All adapters, and the pods that do not answer, with the reason."""

    adapters: Sequence[AdapterOverview]
    silent_pods: Mapping[str, str]


def fleet_overview(settings: PlatformSettings) -> FleetOverview:
    """Look at the registry and at every pod.

    Raises:
        RegistryError: the registry is away or refuses.
    """
    pods = [_ask(url, settings) for url in settings.pods]
    adapters = sorted(read_fleet(settings.registry()), key=lambda snapshot: snapshot.name)
    silent = {pod.url: pod.error for pod in pods if pod.error is not None}
    return FleetOverview([_overview(snapshot, pods) for snapshot in adapters], silent)


def _ask(url: str, settings: PlatformSettings) -> PodState:
    with PodClient(url, settings.admin_token or None, timeout_s=_POD_TIMEOUT_S) as client:
        try:
            return PodState(url, client.report())
        except (PodError, PodUnreachable) as error:
            return PodState(url, None, str(error))


def _overview(snapshot: AdapterSnapshot, pods: Sequence[PodState]) -> AdapterOverview:
    champion = snapshot.versions.get(snapshot.aliases.get(Alias.CHAMPION, 0))
    tags = champion.tags if champion is not None else {}
    serving = {
        pod.url: adapter.serving
        for pod in pods
        if pod.report is not None
        for adapter in pod.report.adapters
        if adapter.name == snapshot.name
    }
    return AdapterOverview(
        name=snapshot.name,
        num_versions=len(snapshot.versions),
        aliases=snapshot.aliases,
        digest=champion.digest if champion is not None else None,
        gate=tags.get(Tag.GATE_STATUS),
        state=tags.get(Tag.SERVE_STATE),
        error=tags.get(Tag.SERVE_ERROR),
        serving=serving,
    )

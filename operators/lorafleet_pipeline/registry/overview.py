"""What the registry wants and what the pods serve, adapter by adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorafleet_contract.aliases import Alias
from lorafleet_contract.fleet import CanaryReport, ShadowReport
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot, read_fleet
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_serving.client import PodClient, PodError, PodUnreachable

_POD_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class AdapterOverview:
    """One adapter. State, error and digest are those of the champion; what pods serve and compare is by address."""

    name: str
    num_versions: int
    aliases: Mapping[str, int]
    digest: str | None
    gate: str | None
    state: str | None
    error: str | None
    serving: Mapping[str, int | None]
    canaries: Mapping[str, CanaryReport]
    shadows: Mapping[str, ShadowReport]

    def trials(self) -> list[str]:
        """A line for each version that is tried out beside the champion, over all pods."""
        canaries, shadows = list(self.canaries.values()), list(self.shadows.values())
        return [
            *(_told_canary([item for item in canaries if item.version == one]) for one in _versions(canaries)),
            *(_told_shadow([item for item in shadows if item.version == one]) for one in _versions(shadows)),
        ]


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
    reports = {
        pod.url: adapter
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
        serving={url: adapter.serving for url, adapter in reports.items()},
        canaries={url: adapter.canary for url, adapter in reports.items() if adapter.canary is not None},
        shadows={url: adapter.shadow for url, adapter in reports.items() if adapter.shadow is not None},
    )


def _versions(reports: Sequence[CanaryReport] | Sequence[ShadowReport]) -> list[int]:
    return sorted({report.version for report in reports})


def _told_canary(pods: Sequence[CanaryReport]) -> str:
    first, num_answers = pods[0], sum(pod.num_answers for pod in pods)
    stopped = next((pod.stopped for pod in pods if pod.stopped is not None), None)
    told = f"canary of version {first.version}: {first.share:.0%} of the requests, {num_answers} answered"
    return told if stopped is None else f"{told}; stopped: {stopped}"


def _told_shadow(pods: Sequence[ShadowReport]) -> str:
    num_answers, num_same = sum(pod.num_answers for pod in pods), sum(pod.num_same for pod in pods)
    num_skipped = sum(pod.num_skipped for pod in pods)
    doubt = next((pod.doubt for pod in pods if pod.doubt is not None), None)
    told = f"shadow of version {pods[0].version}: {num_answers} answers compared, {num_same} the same"
    told += f", {num_skipped} requests skipped" if num_skipped else ""
    return told if doubt is None else f"{told}; {doubt}"

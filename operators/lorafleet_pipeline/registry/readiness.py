"""What the pods together make of an adapter's versions.

A pod that does not answer has taken nothing: it keeps `live` where it is until it answers again or is
taken off LORAFLEET_PODS. The other pods go on serving meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorafleet_contract.fleet import AdapterReport, CanaryReport, PodReport, VersionReport
from lorafleet_contract.states import ServeState
from lorafleet_contract.tags import missing_adapter_tags
from lorafleet_pipeline.registry.snapshot import VersionSnapshot

_WORST_FIRST = (ServeState.REFUSED, ServeState.FAILED, ServeState.LOADING)
_MAX_ERROR_LEN = 1000


@dataclass(frozen=True)
class PodState:
    """What is known of one pod: its last report, and why it does not answer now if it does not."""

    url: str
    report: PodReport | None = None
    error: str | None = None

    @property
    def asked(self) -> bool:
        """Whether it was asked at all since the start."""
        return self.report is not None or self.error is not None

    def concerns(self, version: VersionSnapshot) -> bool:
        """Whether the pod serves the version's base, as far as is known."""
        if self.report is None or version.base_digest is None:
            return True
        return self.report.base_digest == version.base_digest

    def adapter(self, name: str) -> AdapterReport | None:
        """What the pod reports of a name."""
        return next((item for item in self.report.adapters if item.name == name), None) if self.report else None

    def canary(self, name: str) -> CanaryReport | None:
        """What the pod reports of a name's canary."""
        adapter = self.adapter(name)
        return None if adapter is None else adapter.canary

    def version(self, name: str, version: int) -> VersionReport | None:
        """What the pod reports of a version."""
        adapter = self.adapter(name)
        return None if adapter is None else next((item for item in adapter.versions if item.version == version), None)

    def serves(self, name: str, version: VersionSnapshot) -> bool:
        """Whether the bare name reaches the version there, with the digest that the registry names."""
        if self.error is not None or self.report is None:
            return False
        adapter, held = self.adapter(name), self.version(name, version.version)
        return (
            adapter is not None
            and adapter.serving == version.version
            and held is not None
            and held.state is ServeState.READY
            and held.digest == version.digest
        )


@dataclass(frozen=True)
class FleetState:
    """State of one version over all pods, and the reasons of those that do not serve it."""

    state: ServeState
    error: str | None


def taken_by_all(name: str, version: VersionSnapshot, pods: Sequence[PodState]) -> bool:
    """Whether every pod of the version's base serves it under the bare name, and there is such a pod."""
    concerned = [pod for pod in pods if pod.concerns(version)]
    return any(pod.report is not None for pod in concerned) and all(pod.serves(name, version) for pod in concerned)


def fleet_state(name: str, version: VersionSnapshot, pods: Sequence[PodState], *, wanted: bool) -> FleetState | None:
    """The worst that a pod reports of a version; None where no pod has it and none should.

    A pod that should hold a version and does not yet, or does not answer, counts as loading. What is no adapter is
    refused without asking any: a pod may pass it over without a word, since it looks for its base's versions alone.
    """
    if missing := missing_adapter_tags(version.tags):
        error = f"it is no adapter, for it lacks {' and '.join(missing)}: register it with `lorafleet register`"
        return FleetState(ServeState.REFUSED, error) if wanted else None
    concerned = [pod for pod in pods if pod.concerns(version)]
    reports = {pod.url: pod.version(name, version.version) for pod in concerned if pod.error is None}
    found = {url: report for url, report in reports.items() if report is not None}
    if not found and not (wanted and concerned):
        return None
    states = {report.state for report in found.values()}
    if wanted and len(found) < len(concerned):
        states.add(ServeState.LOADING)
    state = next((worst for worst in _WORST_FIRST if worst in states), ServeState.READY)
    silent = [pod for pod in concerned if pod.error is not None] if wanted else []
    return FleetState(state, _reasons(found, silent, alone=len(concerned) == 1))


def _reasons(found: Mapping[str, VersionReport], silent: Iterable[PodState], *, alone: bool) -> str | None:
    reasons = {url: report.error for url, report in found.items() if report.error}
    reasons |= {pod.url: f"does not answer: {pod.error}" for pod in silent}
    lines = [reason if alone else f"{url}: {reason}" for url, reason in sorted(reasons.items())]
    return "; ".join(str(line) for line in lines)[:_MAX_ERROR_LEN] or None

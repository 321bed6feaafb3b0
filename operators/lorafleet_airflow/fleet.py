"""Desired against actual: what the registry says should serve, and what the pods say does.

Plain comparison of data: nobody is asked here and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from lorafleet_contract.aliases import Alias, Stage
from lorafleet_contract.states import ServeState
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.registry.snapshot import AdapterSnapshot, VersionSnapshot


class Standing(StrEnum):
    """How a champion stands in one pod."""

    SERVING = "serving"
    PENDING = "pending"
    """Not yet taken: unknown or loading, and nothing is in the way."""
    HINDERED = "hindered"
    """Not yet taken for a reason that may pass and is not the version's: what it is read from does not answer."""
    REFUSED = "refused"
    FOREIGN = "foreign"
    """The pod serves another base and rightly ignores the adapter."""
    SILENT = "silent"
    """The pod does not answer."""


SETTLED = frozenset({Standing.SERVING, Standing.FOREIGN})
"""Standings that need nothing done."""


@dataclass(frozen=True)
class Champion:
    """The version that the bare name of an adapter should reach."""

    name: str
    version: VersionSnapshot


@dataclass(frozen=True)
class Finding:
    """One champion in one pod."""

    adapter: str
    version: int
    pod: str
    standing: Standing
    serving: int | None = None
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {**asdict(self), "standing": self.standing.value}

    def __str__(self) -> str:
        instead = "" if self.serving in (None, self.version) else f", version {self.serving} serves instead"
        reason = f" ({self.detail})" if self.detail else ""
        return f"{self.adapter} version {self.version} is {self.standing.value} on {self.pod}{instead}{reason}"


def champion_of(snapshot: AdapterSnapshot) -> Champion | None:
    """The champion that should serve; None where there is none, or it was withdrawn."""
    number = snapshot.aliases.get(Alias.CHAMPION)
    version = None if number is None else snapshot.versions[number]
    if version is None or version.stage is Stage.ARCHIVED or version.digest is None:
        return None
    return Champion(snapshot.name, version)


def champions(snapshots: Iterable[AdapterSnapshot]) -> list[Champion]:
    """Every champion that should serve, by name."""
    found = (champion_of(item) for item in sorted(snapshots, key=lambda item: item.name))
    return [item for item in found if item is not None]


def compare(wanted: Sequence[Champion], pods: Sequence[PodState]) -> list[Finding]:
    """How every champion stands in every pod."""
    return [find(champion, pod) for champion in wanted for pod in pods]


def find(champion: Champion, pod: PodState) -> Finding:
    """How one champion stands in one pod."""
    name, version = champion.name, champion.version
    adapters = pod.report.adapters if pod.report is not None else ()
    serving = next((item.serving for item in adapters if item.name == name), None)
    standing, detail = _stand(champion, pod)
    return Finding(name, version.version, pod.url, standing, serving, detail)


def _stand(champion: Champion, pod: PodState) -> tuple[Standing, str]:
    version = champion.version
    if pod.report is None or pod.error is not None:
        return Standing.SILENT, pod.error or "not asked yet"
    if not pod.concerns(version):
        return Standing.FOREIGN, ""
    if pod.serves(champion.name, version):
        return Standing.SERVING, ""
    held = pod.version(champion.name, version.version)
    if held is not None and held.state is ServeState.REFUSED:
        return Standing.REFUSED, held.error or ""
    if held is not None and held.digest and held.digest != version.digest:
        return Standing.REFUSED, f"the pod holds digest {held.digest}, the registry names {version.digest}"
    if held is not None and held.state is ServeState.FAILED:
        return Standing.HINDERED, held.error or held.state.value
    if pod.report.registry_error is not None:
        return Standing.HINDERED, pod.report.registry_error
    if held is None:
        return Standing.PENDING, "not known to the pod yet"
    return Standing.PENDING, held.error or held.state.value

"""Waiting until every pod has taken a version, or one refuses it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lorafleet_contract.aliases import Alias
from lorafleet_contract.fleet import VersionReport
from lorafleet_contract.registry import ModelVersion
from lorafleet_contract.states import ServeState
from lorafleet_pipeline.exceptions import PromotionError, PromotionTimeout
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.registry.snapshot import VersionSnapshot
from lorafleet_pipeline.settings import PlatformSettings

if TYPE_CHECKING:
    from lorafleet_pipeline.registry.pod_states import PodStates

_FIRST_LOOK_S = 0.1
"""Pods take about so long to follow. To ask before, and to load what one asks with, would only slow down those that
share the machine."""
_FIRST_INTERVAL_S = 0.02
_LAST_INTERVAL_S = 0.25
_NUDGE_S = 0.5
"""When to tell pods that have not followed: who told them may be a controller that looks only every few seconds, and
of tags it tells them nothing."""
_STALE_S = 3.0
"""How long a refusal that stood before the move may be an old one, which the pod is about to reconsider."""


class Takeover:
    """Watches the pods while an alias moves.

    Loads its HTTP client when it first asks, by when the alias has moved.
    """

    def __init__(self, item: ModelVersion, alias: str, settings: PlatformSettings) -> None:
        self._name = item.name
        self._version = VersionSnapshot(item.version, item.stage, item.updated_at, item.tags)
        self._alias = alias
        self._settings = settings
        self._pods: PodStates | None = None
        self._refused_before = set(settings.pods)
        """Pods whose refusal, if there is one, may be of before the move."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pods is not None:
            self._pods.close()

    def note_refusals(self) -> None:
        """Before the move: learn which pods refuse the version already, so that a new refusal is known at once."""
        self._refused_before = {
            pod.url
            for pod in self._connected().ask()
            if (report := self._report(pod)) is not None and report.state is ServeState.REFUSED
        }

    def wait(self, limit_s: float, on_progress: Callable[[Mapping[str, str]], None] | None) -> tuple[str, ...]:
        """Wait until every pod of the version's base has taken it; returns their addresses.

        Raises:
            PromotionError: a pod refuses it.
            PromotionTimeout: a pod did not take it in time.
        """
        began, interval_s = time.monotonic(), _FIRST_INTERVAL_S
        is_nudged = False
        time.sleep(min(_FIRST_LOOK_S, limit_s))
        while True:
            connected = self._connected()
            pods = [state for state in connected.ask() if state.concerns(self._version)]
            states = {pod.url: self._describe(pod) for pod in pods}
            if on_progress is not None:
                on_progress(states)
            if all(self._has_taken(pod) for pod in pods):
                return tuple(pod.url for pod in pods)
            waited_s = time.monotonic() - began
            if waited_s >= _NUDGE_S and not is_nudged:
                connected.nudge(self._name)
                is_nudged = True
            self._raise_refusals(pods, waited_s)
            if waited_s > limit_s:
                raise PromotionTimeout(self._late(states, limit_s))
            time.sleep(interval_s)
            interval_s = min(interval_s * 1.5, _LAST_INTERVAL_S)

    def _connected(self) -> PodStates:
        if self._pods is None:
            from lorafleet_pipeline.registry.pod_states import PodStates

            self._pods = PodStates(self._settings)
        return self._pods

    def _report(self, pod: PodState) -> VersionReport | None:
        return None if pod.error is not None else pod.version(self._name, self._version.version)

    def _has_taken(self, pod: PodState) -> bool:
        if self._alias == Alias.CHAMPION:
            return pod.serves(self._name, self._version)
        report = self._report(pod)
        if report is None or self._alias not in tuple(Alias):
            # Pods hold no version ready for an alias that means nothing to them.
            return self._alias not in tuple(Alias)
        return report.state is ServeState.READY and report.digest == self._version.digest

    def _describe(self, pod: PodState) -> str:
        if pod.error is not None:
            return pod.error
        report = self._report(pod)
        if report is None:
            return "has not seen the change yet"
        return report.state.value + (f" ({report.error})" if report.error else "")

    def _raise_refusals(self, pods: list[PodState], waited_s: float) -> None:
        for pod in pods:
            report = self._report(pod)
            if report is None or report.state is not ServeState.REFUSED:
                self._refused_before.discard(pod.url)
            elif pod.url not in self._refused_before or waited_s > _STALE_S:
                raise PromotionError(
                    f"pod {pod.url} refuses version {self._version.version} of {self._name}: {report.error}; "
                    f"`live` goes on serving; `lorafleet rollback {self._name}` puts the alias back"
                )

    def _late(self, states: Mapping[str, str], limit_s: float) -> str:
        open_pods = "; ".join(f"{url}: {state}" for url, state in states.items())
        return (
            f"version {self._version.version} of {self._name} was not taken by every pod within {limit_s:.0f} s "
            f"({open_pods}): the alias stays, pods go on trying; `lorafleet rollback {self._name}` puts it back"
        )

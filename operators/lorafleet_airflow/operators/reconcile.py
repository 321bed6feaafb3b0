"""The regular look at desired against actual."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorafleet_airflow.exceptions import ServingDrifted
from lorafleet_airflow.failures import lasting_errors_fail_at_once
from lorafleet_airflow.hooks.pod import LoRAFleetPodHook, state_of
from lorafleet_airflow.operators.platform import PlatformOperator

if TYPE_CHECKING:
    from lorafleet_airflow.fleet import Finding
    from lorafleet_contract.registry import RegistryClient
    from lorafleet_serving.client import PodClient

_POLL_S = 1.0


class ReconcileServingOperator(PlatformOperator):
    """
    Compare every champion with what every pod serves, and tell the pods that differ to look again.

    Fails when they still differ afterwards, naming adapter, pod and reason: pods follow the registry by themselves,
    so a difference that stays needs a person. The report of all champions goes to XCom as ``report``.

    :param settle_s: longest wait for the pods that were told, in seconds.

    Connections: see `PlatformOperator`.
    """

    def __init__(
        self,
        *,
        settle_s: float = 30.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settle_s = settle_s

    def execute(self, context: Mapping[str, Any]) -> dict[str, int]:
        """Compare, tell, compare again; the counts of each standing."""
        with lasting_errors_fail_at_once(), LoRAFleetPodHook(self.pod_conn_id).clients() as pods:
            secret = self.settings().webhook_secret
            registry = self.registry()
            findings = look(registry, pods)
            if drift := drifted(findings):
                self._nudge(drift, pods, secret)
                findings = self._settle(registry, pods)
        context["ti"].xcom_push(key="report", value=[item.to_json() for item in findings])
        if drift := drifted(findings):
            raise ServingDrifted("; ".join(str(item) for item in drift))
        counts: dict[str, int] = {}
        for item in findings:
            counts[item.standing.value] = counts.get(item.standing.value, 0) + 1
        self.log.info("Pods serve what the registry names: %s", counts or "it names nothing")
        return counts

    def _nudge(self, drift: Sequence[Finding], pods: Sequence[PodClient], secret: str) -> None:
        from lorafleet_serving.client import PodError, PodUnreachable

        for item in drift:
            self.log.warning("Drift: %s", item)
            pod = next(pod for pod in pods if pod.url == item.pod)
            try:
                pod.nudge(item.adapter, secret)
            except (PodError, PodUnreachable) as error:
                self.log.warning("The pod was not told, it looks by itself later: %s", error)

    def _settle(self, registry: RegistryClient, pods: Sequence[PodClient]) -> list[Finding]:
        deadline = time.monotonic() + self.settle_s
        while True:
            findings = look(registry, pods)
            if not drifted(findings) or time.monotonic() >= deadline:
                return findings
            time.sleep(_POLL_S)


def look(registry: RegistryClient, pods: Sequence[PodClient]) -> list[Finding]:
    """Every champion in every pod, now."""
    from lorafleet_airflow.fleet import champions, compare
    from lorafleet_pipeline.registry.snapshot import read_fleet

    return compare(champions(read_fleet(registry)), [state_of(pod) for pod in pods])


def drifted(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that need something done."""
    from lorafleet_airflow.fleet import SETTLED

    return [item for item in findings if item.standing not in SETTLED]

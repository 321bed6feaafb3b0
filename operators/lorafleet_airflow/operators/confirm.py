"""What happens after a champion moved, whoever moved it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import BaseOperator

from lorafleet_airflow.exceptions import PromotionFaulty
from lorafleet_airflow.failures import lasting_errors_fail_at_once
from lorafleet_airflow.hooks.pod import LoRAFleetPodHook
from lorafleet_airflow.hooks.registry import LoRAFleetRegistryHook
from lorafleet_airflow.operators.platform import PlatformOperator
from lorafleet_airflow.settings import REGISTRY_CONN_ID


class ListPromotionsOperator(BaseOperator):
    """
    Name the adapters whose champion moved: one run may carry several events, and several of one adapter.

    :param adapters: names to take where no event started the run; none means every adapter with a champion.
    :param registry_conn_id: connection of the registry.
    """

    template_fields: Sequence[str] = ("adapters", "registry_conn_id")

    def __init__(
        self,
        *,
        adapters: Sequence[str] | str | None = None,
        registry_conn_id: str = REGISTRY_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.adapters = adapters
        self.registry_conn_id = registry_conn_id

    def execute(self, context: Mapping[str, Any]) -> list[str]:
        """Names, sorted and each once."""
        names = moved_adapters(context.get("triggering_asset_events") or {})
        if names:
            return names
        if self.adapters:
            given = [self.adapters] if isinstance(self.adapters, str) else self.adapters
            return sorted(set(given))
        from lorafleet_airflow.fleet import champions
        from lorafleet_pipeline.registry.snapshot import read_fleet

        registry = LoRAFleetRegistryHook(self.registry_conn_id).get_conn()
        return [item.name for item in champions(read_fleet(registry))]


class ConfirmPromotionOperator(PlatformOperator):
    """
    Wait until every pod serves an adapter's champion and let each answer once; go back by alias if it is faulty.

    The champion is rolled back to ``live``, or from there to an older ``previous``, when a pod refuses it, does not
    take it in time, or fails its smoke request, and the task fails naming the cause. A pod that is away, or that cannot
    read the version or the registry now, is no fault of the version: the task is then retried and nothing is moved.

    :param adapter: name of the adapter.
    :param wait_s: longest wait for the pods, in seconds.

    Connections: see `PlatformOperator`.
    """

    template_fields: Sequence[str] = (*PlatformOperator.template_fields, "adapter")
    ui_color = "#e6f4ea"

    def __init__(
        self,
        *,
        adapter: str,
        wait_s: float = 120.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.adapter = adapter
        self.wait_s = wait_s

    def execute(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Confirm, or roll back."""
        from lorafleet_airflow.confirmation import Confirmer, Outcome
        from lorafleet_pipeline.storage import Storage

        with lasting_errors_fail_at_once(), LoRAFleetPodHook(self.pod_conn_id).clients() as pods:
            registry = self.registry()
            confirmer = Confirmer(registry, Storage(self.settings().s3), pods, log=self.log, wait_s=self.wait_s)
            try:
                confirmation = confirmer.confirm(self.adapter)
            except PromotionFaulty as error:
                raise AirflowFailException(self._go_back(registry, error)) from error
        if confirmation.outcome is not Outcome.CONFIRMED:
            raise AirflowSkipException(f"{self.adapter}: {confirmation.outcome.value}")
        self.log.info("%s version %s serves on %d pods", self.adapter, confirmation.version, len(confirmation.pods))
        return confirmation.to_json()

    def _go_back(self, registry: Any, error: PromotionFaulty) -> str:
        from lorafleet_airflow.confirmation import roll_back

        target = roll_back(registry, self.adapter, error.version)
        outcome = (
            "there is no version to go back to, or the champion has moved on"
            if target is None
            else f"rolled back to version {target}"
        )
        return f"{error}; {outcome}"


def moved_adapters(events: Mapping[Any, Sequence[Any]]) -> list[str]:
    """Names of the adapters that a run's asset events are about."""
    payloads = [event.extra.get("payload") or {} for group in events.values() for event in group]
    return sorted({str(payload["adapter"]) for payload in payloads if "adapter" in payload})

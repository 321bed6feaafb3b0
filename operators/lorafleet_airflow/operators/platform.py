"""What the operators that reach registry and pods have in common: two connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator

from lorafleet_airflow.connections import platform_settings
from lorafleet_airflow.hooks.registry import LoRAFleetRegistryHook
from lorafleet_airflow.settings import POD_CONN_ID, REGISTRY_CONN_ID
from lorafleet_contract.registry import RegistryClient
from lorafleet_pipeline.settings import PlatformSettings


class PlatformOperator(BaseOperator):
    """
    An operator that reaches registry and pods.

    :param registry_conn_id: connection of the registry; a default connection that was not made is no error, the
        platform's settings then say where the registry is.
    :param pod_conn_id: connection of the serving pods, likewise.
    """

    template_fields: Sequence[str] = ("registry_conn_id", "pod_conn_id")

    def __init__(
        self, *, registry_conn_id: str = REGISTRY_CONN_ID, pod_conn_id: str = POD_CONN_ID, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.registry_conn_id = registry_conn_id
        self.pod_conn_id = pod_conn_id

    def settings(self) -> PlatformSettings:
        """The platform's settings with the addresses that the connections name."""
        return platform_settings(self.registry_conn_id, self.pod_conn_id)

    def registry(self) -> RegistryClient:
        """A client of the registry."""
        return LoRAFleetRegistryHook(self.registry_conn_id).get_conn()

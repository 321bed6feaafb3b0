"""The registry as an Airflow connection: type `lorafleet_mlflow`."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseHook

from lorafleet_airflow.connections import afind_connection, find_connection, registry_endpoint
from lorafleet_airflow.settings import REGISTRY_CONN_ID, REGISTRY_CONN_TYPE
from lorafleet_contract.exceptions import RegistryError
from lorafleet_contract.registry import RegistryClient
from lorafleet_pipeline.exceptions import InvalidSetting


class LoRAFleetRegistryHook(BaseHook):
    """
    Client of the MLflow registry. Without the connection, the platform's settings say where it is.

    :param registry_conn_id: connection of type `lorafleet_mlflow`.
    """

    conn_name_attr = "registry_conn_id"
    default_conn_name = REGISTRY_CONN_ID
    conn_type = REGISTRY_CONN_TYPE
    hook_name = "LoRAFleet registry (MLflow)"

    def __init__(self, registry_conn_id: str = REGISTRY_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.registry_conn_id = registry_conn_id

    def get_conn(self) -> RegistryClient:
        """A client of the registry."""
        return RegistryClient(registry_endpoint(find_connection(self.registry_conn_id)))

    @classmethod
    async def aget_client(cls, registry_conn_id: str) -> RegistryClient:
        """A client of the registry, for code on an event loop; its calls still block."""
        return RegistryClient(registry_endpoint(await afind_connection(registry_conn_id)))

    def test_connection(self) -> tuple[bool, str]:
        """Whether the registry answers, and what it holds."""
        try:
            models = self.get_conn().search_models()
        except (RegistryError, InvalidSetting, ValueError) as error:
            return False, str(error)
        return True, f"The registry answers and holds {len(models)} adapters"

"""A person's yes before a promotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator

from lorafleet_airflow.failures import lasting_errors_fail_at_once
from lorafleet_airflow.gate import require_gate
from lorafleet_airflow.hooks.registry import LoRAFleetRegistryHook
from lorafleet_airflow.settings import REGISTRY_CONN_ID

RESPONSE_TIMEOUT = timedelta(days=7)
"""How long a version waits for its answer before it counts as rejected."""


class ApproveVersionOperator(ApprovalOperator):
    """
    Ask a person whether a version becomes champion. A rejection skips the promotion.

    A version whose gate did not pass fails the task at once: nobody is asked about it.

    :param adapter: name of the adapter.
    :param version: the version in question.
    :param registry_conn_id: connection of the registry.
    """

    template_fields: Sequence[str] = (*ApprovalOperator.template_fields, "adapter", "version", "registry_conn_id")

    def __init__(
        self,
        *,
        adapter: str,
        version: int | str,
        registry_conn_id: str = REGISTRY_CONN_ID,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("response_timeout", RESPONSE_TIMEOUT)
        kwargs.setdefault("defaults", self.REJECT)
        super().__init__(**kwargs)
        self.adapter = adapter
        self.version = version
        self.registry_conn_id = registry_conn_id

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Check the gate, then wait for the answer."""
        with lasting_errors_fail_at_once():
            require_gate(LoRAFleetRegistryHook(self.registry_conn_id).get_conn(), self.adapter, int(self.version))
        return super().execute(context)

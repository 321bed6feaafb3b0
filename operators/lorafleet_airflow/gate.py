"""The gate's verdict over a registered version, as its tags have it."""

from __future__ import annotations

from lorafleet_contract.registry import RegistryClient
from lorafleet_contract.states import GateStatus
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.exceptions import GateRefused


def require_gate(registry: RegistryClient, name: str, version: int) -> None:
    """Make sure that a version may serve.

    The pod decides by the signed report; this look at the tags only spares a promotion that would be refused.

    Raises:
        GateRefused: the gate failed, or there is no verdict.
    """
    tags = registry.get_version(name, version).tags
    status = tags.get(Tag.GATE_STATUS)
    if status not in {item.value for item in GateStatus if item.servable}:
        reason = tags.get(Tag.GATE_REASON) or "no reason is recorded"
        raise GateRefused(
            f"{name} version {version} is not promoted, its gate is {status or 'missing'}: {reason}. The version stays "
            "registered for inspection; mend data or spec and train again"
        )

"""An adapter that an administrator loaded by hand: it has no entry in the registry, and no gate has judged it."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_contract.states import ServeState
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.adapters.messages import HandOrder
from lorafleet_serving.adapters.watcher import RegisteredVersion


@dataclass(kw_only=True)
class HandLoaded(CatalogVersion):
    """What serves under its bare name as a version does. `order` brings its files again, the same and no others."""

    order: HandOrder

    @classmethod
    def of(cls, order: HandOrder, digest: str) -> HandLoaded:
        """What is at the order's address, and was found to be `digest` and good."""
        # Version 0: those of the registry count from one.
        stands_for = RegisteredVersion(order.name, 0, digest, order.address, withdrawn=False, fingerprint="")
        return cls(stands_for, state=ServeState.READY, address=order.address, order=order)

    @property
    def label(self) -> str:
        """Its name: it has no versions."""
        return self.name

"""Adapters on the device: a byte budget, filled least recently used last.

An adapter that a sequence uses, or that is pinned, is never evicted.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import torch

from lorafleet_contract.states import Tier
from lorafleet_serving.adapters.tier_counts import TierCounts
from lorafleet_serving.adapters.weights import AdapterWeights


@dataclass
class _Slot:
    weights: AdapterWeights
    num_users: int = 0
    pinned: bool = False

    @property
    def held(self) -> bool:
        return self.pinned or self.num_users > 0


class DeviceSlots:
    """Device tier of the adapters."""

    def __init__(self, budget_bytes: int, device: torch.device) -> None:
        self._budget_bytes = budget_bytes
        self._device = device
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._used_bytes = 0
        self.counts = TierCounts()

    def __contains__(self, digest: str) -> bool:
        return digest in self._slots

    @property
    def budget_bytes(self) -> int:
        """Most memory that adapters may take on the device."""
        return self._budget_bytes

    @property
    def used_bytes(self) -> int:
        """Memory that they take now."""
        return self._used_bytes

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests on the device, least recently used first."""
        return tuple(self._slots)

    def acquire(self, adapter: AdapterWeights) -> bool:
        """Make an adapter resident and hold it there; False while held adapters leave no room.

        Each call that returns True is paid back with one `release`.
        """
        slot = self._slots.get(adapter.digest)
        if slot is None:
            if not self._make_room(adapter.num_bytes):
                return False
            slot = self._slots[adapter.digest] = self._copy(adapter)
            self.counts.misses += 1
        else:
            self.counts.hits += 1
        self._slots.move_to_end(adapter.digest)
        slot.num_users += 1
        return True

    def weights(self, digest: str) -> AdapterWeights:
        """Tensors of a resident adapter, on the device."""
        return self._slots[digest].weights

    def release(self, digest: str) -> None:
        """Give back one hold on an adapter, which stays resident until its room is needed."""
        slot = self._slots[digest]
        assert slot.num_users > 0, f"adapter {digest} is released more often than acquired"
        slot.num_users -= 1

    def pin(self, digest: str) -> None:
        """Keep a resident adapter even while no sequence uses it."""
        self._slots[digest].pinned = True

    def unpin(self, digest: str) -> None:
        """Let an adapter be evicted again."""
        self._slots[digest].pinned = False

    def drop(self, digest: str) -> None:
        """Remove an adapter that no sequence uses; it need not be resident."""
        slot = self._slots.pop(digest, None)
        if slot is not None:
            assert slot.num_users == 0, f"adapter {digest} is dropped while {slot.num_users} sequences use it"
            self._used_bytes -= slot.weights.num_bytes

    def check_integrity(self) -> None:
        """Check that the budget is kept and the account is right."""
        used = sum(slot.weights.num_bytes for slot in self._slots.values())
        assert used == self._used_bytes, f"slots hold {used} bytes, the account says {self._used_bytes}"
        assert used <= self._budget_bytes, f"slots hold {used} bytes, the budget is {self._budget_bytes}"
        assert all(slot.num_users >= 0 for slot in self._slots.values()), "a slot has a negative number of users"

    def _copy(self, adapter: AdapterWeights) -> _Slot:
        began = time.monotonic()
        slot = _Slot(adapter.to(self._device))
        self.counts.note_load(Tier.HOST, time.monotonic() - began)
        self._used_bytes += adapter.num_bytes
        return slot

    def _make_room(self, num_bytes: int) -> bool:
        free = self._budget_bytes - self._used_bytes
        victims: list[str] = []
        for digest, slot in self._slots.items():
            if free >= num_bytes:
                break
            if not slot.held:
                victims.append(digest)
                free += slot.weights.num_bytes
        if free < num_bytes:
            return False  # Nothing is evicted for an adapter that would not fit even so.
        for digest in victims:
            self.drop(digest)
        self.counts.evictions += len(victims)
        return True

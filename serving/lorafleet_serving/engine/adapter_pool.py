"""The engine's adapters: in host memory under a budget, and on the device while they are used.

An adapter leaves only when it is told to and no sequence uses it. Knows nothing of names, versions
and where the folders come from.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from lorafleet_serving.adapters.dora import Project
from lorafleet_serving.adapters.slots import DeviceSlots
from lorafleet_serving.adapters.tier_counts import TierCounts
from lorafleet_serving.adapters.weights import AdapterWeights, stage_adapter
from lorafleet_serving.layers.adapter_base import AdapterBase
from lorafleet_serving.layers.linear import LoraLinear


class AdapterPool:
    """Adapters by digest."""

    def __init__(
        self, base: AdapterBase, dtype: torch.dtype, device: torch.device, *, host_bytes: int, device_bytes: int
    ) -> None:
        self._base = base
        self._dtype = dtype
        self._host_bytes = host_bytes
        self._host: dict[str, AdapterWeights] = {}
        self._used_bytes = 0
        self._slots = DeviceSlots(device_bytes, device)
        self._num_requests: Counter[str] = Counter()
        self._leaving: set[str] = set()

    @property
    def host_adapters(self) -> tuple[str, ...]:
        """Digests in host memory."""
        return tuple(self._host)

    @property
    def device_adapters(self) -> tuple[str, ...]:
        """Digests on the device."""
        return self._slots.resident

    @property
    def device_bytes(self) -> int:
        """Bytes on the device."""
        return self._slots.used_bytes

    @property
    def device_counts(self) -> TierCounts:
        """What the device tier has done."""
        return self._slots.counts.copy()

    @property
    def free_host_bytes(self) -> int:
        """What is left of the host tier."""
        return self._host_bytes - self._used_bytes

    def load(self, digest: str, folder: Path) -> int:
        """Read and admit an adapter; returns its size in bytes. Loading it again costs nothing.

        Raises:
            AdapterRefusal, NoRoom: as `read` does.
        """
        num_bytes = self.keep(digest)
        return self.admit(self.read(digest, folder, self.free_host_bytes)) if num_bytes is None else num_bytes

    def keep(self, digest: str) -> int | None:
        """Size of an adapter in host memory, which stays even if it was to leave; None where there is none."""
        if digest not in self._host:
            return None
        self._leaving.discard(digest)
        return self._host[digest].num_bytes

    def read(self, digest: str, folder: Path, free_bytes: int, project: Project = LoraLinear.project) -> AdapterWeights:
        """Read an adapter that is to be admitted.

        Touches nothing that a step does, but for what `project` does: another thread may do the rest.

        Raises:
            AdapterRefusal: its contents are wrong or not served, or it is larger than a tier (`AdapterTooLarge`).
            NoRoom: it is larger than `free_bytes`.
        """
        largest = min(self._host_bytes, self._slots.budget_bytes)
        staged = stage_adapter(digest, folder, self._base, self._dtype, largest, free_bytes)
        return staged.finish(self._base, project)

    def admit(self, weights: AdapterWeights) -> int:
        """Take over an adapter for which there was room when it was read; returns its size in bytes."""
        assert weights.digest not in self._host, f"adapter {weights.digest} was read while it was here"
        assert weights.num_bytes <= self.free_host_bytes, f"adapter {weights.digest} was admitted without room"
        self._host[weights.digest] = weights
        self._used_bytes += weights.num_bytes
        return weights.num_bytes

    def unload(self, digest: str) -> bool:
        """Drop an adapter, at once or when its last request ends; True if it is gone.

        New requests for it are refused from now on. Unknown digests are gone already.
        """
        if digest not in self._host:
            return True
        self._leaving.add(digest)
        return self._drop_if_unused(digest)

    def serves(self, digest: str) -> bool:
        """Whether new requests for an adapter are taken."""
        return digest in self._host and digest not in self._leaving

    def enter(self, digest: str) -> None:
        """A request for the adapter begins."""
        self._num_requests[digest] += 1

    def leave(self, digest: str) -> None:
        """A request for the adapter has ended."""
        self._num_requests[digest] -= 1
        if digest in self._leaving:
            self._drop_if_unused(digest)

    def acquire(self, digest: str) -> bool:
        """Make an adapter resident and hold it; False while there is no room."""
        return self._slots.acquire(self._host[digest])

    def release(self, digest: str) -> None:
        """Give back one hold."""
        self._slots.release(digest)

    def weights(self, digest: str) -> AdapterWeights:
        """Weights of a held adapter, on the device."""
        return self._slots.weights(digest)

    def check_integrity(self) -> None:
        """Check budgets, and that nothing is on the device that the host does not have."""
        self._slots.check_integrity()
        assert set(self._slots.resident) <= set(self._host), "an adapter is on the device and not on the host"
        used = sum(weights.num_bytes for weights in self._host.values())
        assert used == self._used_bytes, f"the host tier holds {used} bytes, the account says {self._used_bytes}"
        assert used <= self._host_bytes, f"the host tier holds {used} bytes, the budget is {self._host_bytes}"
        assert all(self._num_requests[digest] > 0 for digest in self._leaving), "an unused adapter was not dropped"

    def _drop_if_unused(self, digest: str) -> bool:
        if self._num_requests[digest] > 0:
            return False
        self._slots.drop(digest)
        self._used_bytes -= self._host.pop(digest).num_bytes
        del self._num_requests[digest]
        self._leaving.discard(digest)
        return True

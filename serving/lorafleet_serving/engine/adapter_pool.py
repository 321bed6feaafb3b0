"""The engine's adapters: in host memory under a budget, and on the device while they are used.

An adapter leaves only when it is told to and no sequence uses it. Knows nothing of names, versions
and where the folders come from.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from lorafleet_serving.adapters.slots import DeviceSlots
from lorafleet_serving.adapters.weights import AdapterWeights, read_adapter
from lorafleet_serving.layers.adapter_base import AdapterBase


class AdapterPool:
    """Adapters by digest."""

    def __init__(
        self, base: AdapterBase, dtype: torch.dtype, device: torch.device, *, host_bytes: int, device_bytes: int
    ) -> None:
        self._base = base
        self._dtype = dtype
        self._host_bytes = host_bytes
        self._host: dict[str, AdapterWeights] = {}
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

    def load(self, digest: str, folder: Path) -> int:
        """Read an adapter into host memory; returns its size in bytes. Loading it again costs nothing.

        Raises:
            AdapterRefusal: its contents are wrong or not served, or it is larger than a tier (`AdapterTooLarge`).
            NoRoom: other adapters fill the host tier.
        """
        if digest not in self._host:
            free = self._host_bytes - sum(weights.num_bytes for weights in self._host.values())
            largest = min(self._host_bytes, self._slots.budget_bytes)
            self._host[digest] = read_adapter(digest, folder, self._base, self._dtype, largest, free)
        self._leaving.discard(digest)
        return self._host[digest].num_bytes

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
        assert sum(weights.num_bytes for weights in self._host.values()) <= self._host_bytes, "host budget exceeded"
        assert all(self._num_requests[digest] > 0 for digest in self._leaving), "an unused adapter was not dropped"

    def _drop_if_unused(self, digest: str) -> bool:
        if self._num_requests[digest] > 0:
            return False
        self._slots.drop(digest)
        del self._host[digest]
        del self._num_requests[digest]
        self._leaving.discard(digest)
        return True

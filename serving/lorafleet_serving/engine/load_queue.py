"""Adapters that are read into host memory beside the engine's steps, so that no answer waits for them.

Reading maps files, converts and scales tensors: all of it in another thread. One adapter at a time, in the order of
the asking, because what the next may take is known once this one has its place.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.adapter_pool import AdapterPool
from lorafleet_serving.engine.messages import AdapterLoaded, AdapterRefused
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, NoRoom

_logger = logging.getLogger(__name__)


class _Load(NamedTuple):
    digest: str
    weights: Future[AdapterWeights]


class LoadQueue:
    """Loads that have not ended. `on_read` is told from another thread when the next may be taken."""

    def __init__(self, adapters: AdapterPool, on_read: Callable[[], None]) -> None:
        self._adapters = adapters
        self._on_read = on_read
        # Its one thread computes alone: the cores belong to the steps.
        self._reader = ThreadPoolExecutor(1, "adapter-reader", initializer=partial(torch.set_num_threads, 1))
        self._waiting: deque[tuple[str, Path]] = deque()
        self._reading: _Load | None = None

    def add(self, digest: str, folder: Path) -> None:
        """Load an adapter after those asked for before."""
        self._waiting.append((digest, folder))

    def discard(self, digest: str) -> None:
        """Forget the loads of an adapter; one that is being read is not taken."""
        self._waiting = deque(item for item in self._waiting if item[0] != digest)
        if self._reading is not None and self._reading.digest == digest:
            self._reading.weights.cancel()
            self._reading = None

    def take_ended(self) -> Iterator[AdapterLoaded | AdapterRefused]:
        """End the loads whose adapter was read meanwhile, and begin the next."""
        while self._reading is not None or self._waiting:
            if self._reading is None:
                yield from self._begin(*self._waiting.popleft())
            elif self._reading.weights.done():
                load, self._reading = self._reading, None
                yield self._end(load)
            else:
                return

    def _begin(self, digest: str, folder: Path) -> Iterator[AdapterLoaded]:
        num_bytes = self._adapters.keep(digest)
        if num_bytes is not None:
            yield AdapterLoaded(digest, num_bytes)
            return
        self._reading = _Load(digest, self._reader.submit(self._adapters.read, digest, folder))
        self._reading.weights.add_done_callback(lambda _: self._on_read())

    def _end(self, load: _Load) -> AdapterLoaded | AdapterRefused:
        error = load.weights.exception()
        if error is None:
            return AdapterLoaded(load.digest, self._adapters.admit(load.weights.result()))
        if isinstance(error, (AdapterRefusal, NoRoom)):
            return AdapterRefused(load.digest, error)
        # A load touches nothing of the batch: no adapter, however odd, is worth everybody's answers. Whether it was
        # the adapter or the machine is unknown, so that it is tried again, and not refused for good.
        _logger.error("loading adapter %s failed", load.digest, exc_info=error)
        return AdapterRefused(load.digest, FetchFailed(f"it could not be loaded: {error!r}"))

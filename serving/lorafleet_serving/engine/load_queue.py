"""Adapters that are read into host memory beside the engine's steps, so that no answer waits for them.

Reading maps files, converts and scales tensors: all of it in a thread of its own. One adapter at a time, in the order
of the asking, because what the next may take is known once this one has its place. Only torch's own operators run
there, and never the kernels: numba ends a process in which two threads enter its parallel code at once, unless a
library that not every machine has keeps them apart. What needs them is handed to the engine's thread, one product at a
time, so that its steps wait for no more than one.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch
from torch import Tensor

from lorafleet_serving.adapters.disk_lock import share
from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.adapter_pool import AdapterPool
from lorafleet_serving.engine.messages import AdapterLoaded, AdapterRefused
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, FilesGone, NoRoom
from lorafleet_serving.layers.linear import LoraLinear

_logger = logging.getLogger(__name__)

_NICENESS = 10
"""What of the cores the steps leave is enough: an adapter that comes a little later holds up only those who ask it."""


class _Order(NamedTuple):
    digest: str
    folder: Path
    free_bytes: int


class Projection(NamedTuple):
    """A product with a weight of the base model, for which the reader waits."""

    linear: LoraLinear
    rows: Tensor
    product: Future[Tensor]

    def compute(self) -> None:
        """Let the reader have it, or what went wrong."""
        try:
            self.product.set_result(self.linear.project(self.rows))
        except Exception as error:
            self.product.set_exception(error)


_Read = AdapterWeights | AdapterRefusal | NoRoom | FetchFailed


class ReadEnded(NamedTuple):
    """What came of reading an adapter, or what must be computed before it goes on."""

    digest: str
    result: _Read | Projection


class LoadQueue:
    """Loads that have not ended.

    `on_read` is told from another thread what came of reading, and has it handed to `take` in the engine's own; `send`
    is told what became of each load.
    """

    def __init__(
        self,
        adapters: AdapterPool,
        on_read: Callable[[ReadEnded], None],
        send: Callable[[AdapterLoaded | AdapterRefused], None],
    ) -> None:
        self._adapters = adapters
        self._on_read = on_read
        self._send = send
        self._waiting: deque[tuple[str, Path]] = deque()
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._began_at: float | None = None
        # A daemon: one that hangs must not keep the process from ending.
        threading.Thread(target=self._read_all, name="adapter-reader", daemon=True).start()

    @property
    def reading_s(self) -> float | None:
        """For how long nothing has come of the adapter that is being read; None while none is."""
        return None if self._began_at is None else time.monotonic() - self._began_at

    def add(self, digest: str, folder: Path) -> None:
        """Load an adapter after those asked for before; one that is there already ends at once, and stays."""
        if not self._kept(digest):
            self._waiting.append((digest, folder))
            self._begin_next()

    def take(self, read: ReadEnded) -> None:
        """End the load of an adapter that was read, and begin the next; or compute what the reader asks for."""
        match read.result:
            case Projection() as asked:
                # A reader that waits for the steps does not hang.
                self._began_at = time.monotonic()
                asked.compute()
            case result:
                self._began_at = None
                self._send(self._admitted(read.digest, result))
                self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting and self._began_at is None:
            digest, folder = self._waiting.popleft()
            # It may have been asked for twice.
            if not self._kept(digest):
                self._began_at = time.monotonic()
                self._orders.put(_Order(digest, folder, self._adapters.free_host_bytes))

    def _kept(self, digest: str) -> bool:
        num_bytes = self._adapters.keep(digest)
        if num_bytes is not None:
            self._send(AdapterLoaded(digest, num_bytes))
        return num_bytes is not None

    def _admitted(self, digest: str, result: _Read) -> AdapterLoaded | AdapterRefused:
        if not isinstance(result, AdapterWeights):
            return AdapterRefused(digest, result)
        try:
            return AdapterLoaded(digest, self._adapters.admit(result))
        except Exception as error:
            return AdapterRefused(digest, _unforeseen(digest, error))

    def _read_all(self) -> None:
        # Of this thread, and of those that begin to use torch later; the cores belong to the steps.
        torch.set_num_threads(1)
        if sys.platform == "linux":  # Elsewhere it would be the whole process that steps back.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while True:
            self._on_read(self._read(self._orders.get()))

    def _read(self, order: _Order) -> ReadEnded:
        project = partial(self._project, order.digest)
        gone = FilesGone("its files have left the disk tier meanwhile")
        try:
            lock = share(order.folder)
            if lock is None:
                return ReadEnded(order.digest, gone)
            with lock:  # No pod of the node evicts it now.
                return ReadEnded(order.digest, self._adapters.read(*order, project))
        except (AdapterRefusal, NoRoom) as error:
            if not order.folder.is_dir():  # It was found damaged.
                return ReadEnded(order.digest, gone)
            # Without the frames it went through, which hold tensors.
            return ReadEnded(order.digest, error.with_traceback(None))
        except Exception as error:
            return ReadEnded(order.digest, _unforeseen(order.digest, error))

    def _project(self, digest: str, linear: LoraLinear, rows: Tensor) -> Tensor:
        asked = Projection(linear, rows, Future())
        self._on_read(ReadEnded(digest, asked))
        return asked.product.result()


def _unforeseen(digest: str, error: Exception) -> FetchFailed:
    # A load touches nothing of the batch: no adapter, however odd, is worth everybody's answers. Whether it was the
    # adapter or the machine is unknown, so that it is tried again, and not refused for good.
    _logger.error("loading adapter %s failed", digest, exc_info=error)
    return FetchFailed(f"it could not be loaded: {error!r}")

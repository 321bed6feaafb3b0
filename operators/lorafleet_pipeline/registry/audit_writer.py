"""Writes the audit log in the background: a slow or absent S3 must not hold up a promotion.

Entries wait in memory until they are written. The controller remembers what it observed in the registry
only after that, so that a crash before loses no change, only the steps between.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

from lorafleet_contract.backoff import Backoff
from lorafleet_pipeline.exceptions import StorageError
from lorafleet_pipeline.registry.audit import AuditEntry, AuditLog

_logger = logging.getLogger(__name__)

_RETRY = Backoff(0.5, 30.0)
_LAST_WRITES_S = 5.0
"""How long an end waits for what can still be written."""


class AuditWriter:
    """A thread that appends entries in order, trying again until each is written."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._waiting: deque[tuple[AuditEntry, Callable[[str], None]]] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """End once what waits is written; while S3 is away, or slow, without that."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_LAST_WRITES_S)

    def add(self, entries: Iterable[AuditEntry], on_written: Callable[[str], None]) -> None:
        """Take entries; `on_written` is told the adapter once its last waiting entry is written."""
        with self._changed:
            self._waiting.extend((entry, on_written) for entry in entries)
            self._changed.notify()

    def is_pending(self, adapter: str) -> bool:
        """Whether entries of an adapter wait to be written."""
        with self._changed:
            return any(entry.adapter == adapter for entry, _ in self._waiting)

    def flush(self) -> None:
        """Write what waits, in this thread; only where the writer was not started.

        Raises:
            StorageError: an entry could not be written; it and the rest go on waiting.
        """
        while self._waiting:
            self._write_first()

    def _run(self) -> None:
        num_failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if not self._waiting:
                    return
            try:
                self._write_first()
                num_failures = 0
            except StorageError as error:
                if self._stopped:
                    _logger.warning("%d entries of the audit log are not written: %s", len(self._waiting), error)
                    return
                num_failures += 1
                retry_s = _RETRY.pause_s(num_failures)
                _logger.warning("the audit log cannot be written, trying again in %.0f s: %s", retry_s, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, timeout=retry_s)

    def _write_first(self) -> None:
        entry, on_written = self._waiting[0]
        self._log.append(entry)
        with self._changed:
            self._waiting.popleft()
        if not self.is_pending(entry.adapter):
            on_written(entry.adapter)

"""Sees to it that one process at a time does a job, by a lock on a file that dies with its holder."""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_logger = logging.getLogger(__name__)

_RETRY_S = 0.5


@contextmanager
def sole_instance(path: Path, stop: threading.Event) -> Iterator[bool]:
    """Wait for the lock; gives False where `stop` was set before it was free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        told = False
        while not stop.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    _logger.info("another process holds %s: waiting for it to end", path)
                told = True
                stop.wait(_RETRY_S)
                continue
            yield True  # The lock is given back when the file is closed.
            return
        yield False

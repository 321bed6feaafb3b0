"""Ports spoken for by the stacks of one user, between their choice and the moment when a server listens.

Airflow takes ten seconds to listen; a second stack that starts meanwhile would choose the same port, and each
would take the other's server for its own. A reservation is a lock on a file: it ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class PortReservations:
    """The reservations of this user on this machine."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / f"lorafleet-ports-{os.getuid()}"
        self._held: list[TextIO] = []

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While one stack chooses its ports and its supervisor reserves them, no other does."""
        with self._open("choice") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def hold(self, ports: Iterable[int]) -> None:
        """Reserve ports until this process ends."""
        for port in ports:
            file = self._open(str(port))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._held.append(file)

    def is_reserved(self, port: int) -> bool:
        """Whether another process has reserved a port."""
        if not (self._folder / str(port)).is_file():
            return False
        with self._open(str(port)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def release(self) -> None:
        """Give up what is held."""
        for file in self._held:
            file.close()
        self._held.clear()

    def _open(self, name: str) -> TextIO:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return (self._folder / name).open("a")

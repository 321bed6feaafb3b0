"""Ports spoken for by the stacks of this machine, between their choice and the moment when a server listens.

Airflow takes ten seconds to listen; a second stack that starts meanwhile would choose the same port, and each
would take the other's server for its own. A reservation is an abstract socket: it stands in no file system, is seen
by every user, and ends with the process that holds it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lorafleet_pipeline.exceptions import StackError

_CHOICE = "choice"
_CHOICE_LIMIT_S = 120.0
_POLL_S = 0.05


class PortReservations:
    """The reservations of one process among those of the machine. `scope` keeps separate sets apart."""

    def __init__(self, scope: str = "lorafleet-port") -> None:
        self._scope = scope
        self._held: list[socket.socket] = []

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While one stack chooses its ports and its supervisor reserves them, no other does.

        Raises:
            StackError: another one has been choosing for too long.
        """
        deadline = time.monotonic() + _CHOICE_LIMIT_S
        while (turn := self._take(_CHOICE)) is None:
            if time.monotonic() > deadline:
                raise StackError(
                    f"another `lorafleet up` has been choosing ports for {_CHOICE_LIMIT_S:.0f} s: end it, and try again"
                )
            time.sleep(_POLL_S)
        with turn:
            yield

    def hold(self, ports: Iterable[int]) -> None:
        """Reserve ports until this process ends.

        Raises:
            StackError: another process has reserved one of them.
        """
        for port in ports:
            taken = self._take(str(port))
            if taken is None:
                raise StackError(f"port {port} is reserved by another stack: try again")
            self._held.append(taken)

    def is_reserved(self, port: int) -> bool:
        """Whether another process has reserved a port."""
        taken = self._take(str(port))
        if taken is None:
            return True
        taken.close()
        return False

    def release(self) -> None:
        """Give up what is held."""
        for taken in self._held:
            taken.close()
        self._held.clear()

    def _take(self, name: str) -> socket.socket | None:
        taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The leading zero makes the address abstract.
            taken.bind(f"\0{self._scope}-{name}")
        except OSError:
            taken.close()
            return None
        return taken

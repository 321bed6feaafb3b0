"""A network that fails: passes bytes on to a server, slowly, in part, or not at all, as it is told."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

_CHUNK_BYTES = 65536
_SLOW_CHUNK_BYTES = 1024
_RESET = struct.pack("ii", 1, 0)
"""Linger for no time: closing such a socket resets the connection."""


class NetworkProxy:
    """A way to one server."""

    def __init__(self, target: str, *break_after: int) -> None:
        """`break_after` are bytes of answers, of one connection after the other; later ones are whole."""
        self._target = urlsplit(target)
        self._break_after = list(break_after)
        self._bytes_per_s: float | None = None
        self._resets = False
        self._is_silent = False
        self.num_connections = 0
        self.num_asked = 0
        """Bytes that came of callers."""
        self.num_answered = 0
        """Bytes that came of the server."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._pace = threading.Lock()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> NetworkProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def disturb(
        self,
        *,
        break_after: Iterable[int] = (),
        bytes_per_s: float | None = None,
        resets: bool = False,
        is_silent: bool = False,
    ) -> None:
        """Break off what is open, and fail from now on.

        Args:
            break_after: bytes of answers after which the next connections break.
            bytes_per_s: of all answers together; None is as fast as can be.
            resets: every connection is reset as soon as it is made.
            is_silent: connections are taken, and nothing comes of them.
        """
        self._break_after = list(break_after)
        self._bytes_per_s, self._resets, self._is_silent = bytes_per_s, resets, is_silent
        self._break_all()

    def heal(self) -> None:
        """Pass everything on again; what hangs is broken off."""
        self.disturb()

    def stop(self) -> None:
        """End every connection, and take no more."""
        self._resets = True
        _shut(self._server)
        self._break_all()
        self._thread.join()
        self._server.close()

    def _break_all(self) -> None:
        for end in list(self._open):
            _shut(end)

    def _run(self) -> None:
        threads: list[threading.Thread] = []
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                break
            self.num_connections += 1
            left = self._break_after.pop(0) if self._break_after else None
            threads.append(threading.Thread(target=self._connect, args=(caller, left)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _connect(self, caller: socket.socket, left: int | None) -> None:
        if self._resets:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            caller.close()
            return
        try:
            upstream = socket.create_connection((self._target.hostname or "", self._target.port or 80))
        except ConnectionRefusedError:
            caller.close()
            return
        ends = {caller, upstream}
        self._open |= ends
        asking = threading.Thread(target=self._pass_on, args=(caller, upstream, None))
        asking.start()
        self._pass_on(upstream, caller, left, is_answer=True)
        asking.join()
        self._open -= ends
        for end in ends:
            end.close()

    def _pass_on(
        self, source: socket.socket, target: socket.socket, left: int | None, *, is_answer: bool = False
    ) -> None:
        with suppress(OSError):  # One of the ends is gone.
            while left is None or left > 0:
                data = source.recv(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES))
                if not data:
                    break
                if is_answer:
                    self.num_answered += len(data)
                else:
                    self.num_asked += len(data)
                if self._is_silent:
                    continue
                if is_answer:
                    self._send_in_turn(target, data)
                else:
                    target.sendall(data)
                left = None if left is None else left - len(data)
        for end in (source, target):
            _shut(end)

    def _send_in_turn(self, target: socket.socket, data: bytes) -> None:
        while self._bytes_per_s is not None and data:
            part, data = data[:_SLOW_CHUNK_BYTES], data[_SLOW_CHUNK_BYTES:]
            with self._pace:
                pace = self._bytes_per_s  # It may have been healed while others had the line.
                time.sleep(0.0 if pace is None else len(part) / pace)
            target.sendall(part)
        target.sendall(data)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):  # It is shut already.
        end.shutdown(socket.SHUT_RDWR)

"""A proxy in front of a server, which counts what goes through it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit


class CountingProxy(ThreadingTCPServer):
    """Passes bytes on; where nobody listens behind it, it closes the connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        found = urlsplit(target)
        self.target = (found.hostname or "", found.port or 80)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.num_connections = 0
        self.num_bytes = 0
        """Of the server's answers."""


class _Connection(BaseRequestHandler):
    server: CountingProxy
    request: socket.socket

    def handle(self) -> None:
        self.server.num_connections += 1
        with suppress(OSError), socket.create_connection(self.server.target) as upstream:
            threading.Thread(target=_pass_on, args=(self.request, upstream), daemon=True).start()
            while data := upstream.recv(65536):
                self.server.num_bytes += len(data)
                self.request.sendall(data)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def counting_proxy(target: str) -> Iterator[CountingProxy]:
    """A proxy that runs until the block ends."""
    with CountingProxy(target) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()

"""Runs the pod: the HTTP server around it, signals, and the order in which things end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from lorafleet_serving.api.app import create_app
from lorafleet_serving.config import PodConfig
from lorafleet_serving.exceptions import InvalidSetting, ServingError
from lorafleet_serving.heap import freeze_heap
from lorafleet_serving.pod import Pod

_logger = logging.getLogger(__name__)

_CLOSE_LIMIT_S = 2
"""What open connections get after the drain, in which their requests have ended or run out of time."""
_BACKLOG = 2048


async def serve(config: PodConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        InvalidSetting: the port is taken.
        ServingError: the base model cannot be served.
    """
    listener = listen(config.host, config.port)
    stopping = asyncio.Event()
    failures: list[str] = []

    def give_up(reason: str) -> None:
        failures.append(reason)
        stopping.set()

    pod = Pod(config, on_failure=give_up)
    settings = uvicorn.Config(
        create_app(pod), log_level="warning", access_log=False, timeout_graceful_shutdown=_CLOSE_LIMIT_S, lifespan="off"
    )
    server = _Server(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    _logger.info("listening on http://%s:%d", *listener.getsockname()[:2])
    try:
        await pod.start()
        freeze_heap()
        await stopping.wait()
        _logger.info("draining")
        await pod.drain()
    finally:
        server.should_exit = True
        await serving
        await pod.stop()
    if failures:
        raise ServingError(failures[0])


class _Server(uvicorn.Server):
    """Leaves signals to `serve`: the sockets stay open while the pod drains, so that callers hear 503."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        InvalidSetting: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's algorithm off on no other socket: each answer, and each
    # streamed token, would wait 40 ms for the caller's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # A port that another listens on is only refused here, where SO_REUSEADDR let the bind pass.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidSetting(
            f"cannot listen on {host}:{port} ({error}): choose another with --host and --port"
        ) from error
    return listener

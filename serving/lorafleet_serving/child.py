"""A child process of the pod's front: spawned, spoken to over a private pipe, started again when it dies.

Runs on the front's event loop. One thread reads the pipe and posts what it reads into the loop, one
writes, so that the loop never waits for a child. Knows nothing about what the child does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 15.0
_STABLE_S = 30.0
"""A child that ran this long starts again at once when it dies."""
_EXIT_LIMIT_S = 5.0

ChildMain = Callable[[Connection, Any], None]


class ChildProcess:
    """Keeps one child alive.

    `on_event` gets each message of the child, `on_exit` is told each time it died, both on the loop.
    """

    def __init__(
        self,
        name: str,
        main: ChildMain,
        settings: object,
        *,
        on_event: Callable[[Any], None],
        on_exit: Callable[[], None],
    ) -> None:
        self.name = name
        self._main = main
        self._settings = settings
        self._on_event = on_event
        self._on_exit = on_exit
        self._process: BaseProcess | None = None
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started_at = 0.0
        self._quick_deaths = 0
        self._stopping = False
        self._restart: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id while the child runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Spawn the child. Call from the event loop."""
        self._loop = asyncio.get_running_loop()
        self._restart = None
        self._gone.clear()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_child, args=(self._main, theirs, self._settings), name=f"lorafleet-{self.name}", daemon=True
        )
        process.start()
        theirs.close()  # Else the pipe would not close when the child dies.
        self._process = process
        self._started_at = time.monotonic()
        self._outbox = queue.SimpleQueue()
        threads = ((self._read, (ours, process, self._outbox)), (self._write, (ours, self._outbox)))
        for target, arguments in threads:
            threading.Thread(target=target, args=arguments, name=f"{self.name}-{target.__name__}", daemon=True).start()
        _logger.info("%s process started, pid %s", self.name, process.pid)

    def send(self, message: object) -> None:
        """Hand a message to the child; never waits. What a dead child did not read is lost."""
        self._outbox.put(message)

    async def stop(self, farewell: object) -> None:
        """Ask the child to end, and end it by force when it does not."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
        if self._process is None:
            return
        self.send(farewell)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), _EXIT_LIMIT_S)
            return
        _logger.warning("%s process did not end within %.0f s: killed", self.name, _EXIT_LIMIT_S)
        self._process.kill()
        await self._gone.wait()

    def _read(self, pipe: Connection, process: BaseProcess, outbox: queue.SimpleQueue[Any]) -> None:
        with contextlib.suppress(EOFError, OSError):  # Both say that the child is gone; handled below.
            while True:
                self._post(self._on_event, pipe.recv())
        process.join(_EXIT_LIMIT_S)
        outbox.put(_Closed)
        self._post(self._died, process)

    def _write(self, pipe: Connection, outbox: queue.SimpleQueue[Any]) -> None:
        while (message := outbox.get()) is not _Closed:
            try:
                pipe.send(message)
            except OSError:
                return  # The reader sees the closed pipe too, and reports the death.

    def _post(self, callback: Callable[..., None], argument: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The loop closed: the front is ending.
            self._loop.call_soon_threadsafe(callback, argument)

    def _died(self, process: BaseProcess) -> None:
        self._process = None
        self._gone.set()
        if self._stopping:
            return
        lived_s = time.monotonic() - self._started_at
        self._quick_deaths = 0 if lived_s >= _STABLE_S else self._quick_deaths + 1
        # The first death is answered at once; only a child that keeps dying has to wait.
        delay = min(_FIRST_DELAY_S * 2 ** (self._quick_deaths - 2), _LONGEST_DELAY_S) if self._quick_deaths > 1 else 0.0
        _logger.error("%s process ended (exit code %s): starts again in %.1f s", self.name, process.exitcode, delay)
        self._on_exit()
        assert self._loop is not None
        self._restart = self._loop.call_later(delay, self.start)


class _Closed:
    """Tells the writing thread to end."""


def run_child(main: ChildMain, pipe: Connection, settings: object) -> None:
    """Run a child's main function. Signals to the process group are the front's business: it drains first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_logging()
    main(pipe, settings)


def start_logging() -> None:
    """Log to standard error, our own lines from INFO up."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s")
    logging.getLogger("lorafleet_serving").setLevel(logging.INFO)

"""A child process of the pod's front: spawned, spoken to over a private pipe, started again when it dies.

Runs on the front's event loop. One thread reads the pipe and posts what it reads into the loop, one
writes, so that the loop never waits for a child. A third listens to the child's pulse, and kills a
child that has frozen. Knows nothing about what the child does.
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

from lorafleet_contract.backoff import Backoff
from lorafleet_serving.loop import post

_logger = logging.getLogger(__name__)

_BACKOFF = Backoff(first_s=0.5, longest_s=15.0)
_STABLE_S = 30.0
"""A child that ran this long starts again at once when it dies."""
_EXIT_LIMIT_S = 5.0
_PULSE_S = 0.5
_SECOND_LOOK_S = 2.0
_FIRST_PULSE_LIMIT_S = 60.0
"""What a child gets to start its interpreter in, on a machine that has much else to do."""

ChildMain = Callable[[Connection, Any], None]


class ChildProcess:
    """Keeps one child alive.

    `on_event` gets each message of the child, `on_exit` is told each time it died, both on the loop.
    A child that is silent for `silence_limit_s` is killed.
    """

    def __init__(
        self,
        name: str,
        main: ChildMain,
        settings: object,
        *,
        silence_limit_s: float,
        on_event: Callable[[Any], None],
        on_exit: Callable[[], None],
    ) -> None:
        self.name = name
        self._silence_limit_s = silence_limit_s
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
        pulse, beating = context.Pipe(duplex=False)
        arguments = (self._main, theirs, beating, self._settings)
        process = context.Process(target=run_child, args=arguments, name=f"lorafleet-{self.name}", daemon=True)
        try:
            process.start()
        except OSError as error:
            _logger.error("%s process cannot be started (%s): tried again", self.name, error)
            self._restart = self._loop.call_later(_BACKOFF.longest_s, self.start)
            return
        finally:
            for end in (theirs, beating):
                end.close()  # Else the pipes would not close when the child dies.
        self._process = process
        self._started_at = time.monotonic()
        self._outbox = queue.SimpleQueue()
        self._start_thread(self._read, ours, process, self._outbox)
        self._start_thread(self._write, ours, self._outbox)
        self._start_thread(self._watch, pulse, process)
        _logger.info("%s process started, pid %s", self.name, process.pid)

    def send(self, message: object) -> None:
        """Hand a message to the child; never waits. What a dead child did not read is lost."""
        self._outbox.put(message)

    def retire(self) -> None:
        """Let the child end for good."""
        self._stopping = True

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

    def _start_thread(self, target: Callable[..., None], *arguments: object) -> None:
        name = f"{self.name}-{target.__name__.strip('_')}"
        threading.Thread(target=target, args=arguments, name=name, daemon=True).start()

    def _read(self, pipe: Connection, process: BaseProcess, outbox: queue.SimpleQueue[Any]) -> None:
        assert self._loop is not None
        with contextlib.suppress(EOFError, OSError):  # Both say that the child is gone; handled below.
            while True:
                post(self._loop, self._on_event, pipe.recv())
        process.join(_EXIT_LIMIT_S)
        process.kill()  # One that hangs on its way out must not live on beside the next.
        process.join()
        outbox.put(_Closed)
        post(self._loop, self._died, process)

    def _write(self, pipe: Connection, outbox: queue.SimpleQueue[Any]) -> None:
        while (message := outbox.get()) is not _Closed:
            try:
                pipe.send(message)
            except OSError:
                return  # The reader sees the closed pipe too, and reports the death.

    def _watch(self, pulse: Connection, process: BaseProcess) -> None:
        limit_s = _FIRST_PULSE_LIMIT_S
        with contextlib.suppress(EOFError, OSError):  # The child is gone.
            # A second, short look: where everything was paused together, the child could not give a sign either.
            while pulse.poll(limit_s) or pulse.poll(_SECOND_LOOK_S):
                pulse.recv_bytes()
                limit_s = self._silence_limit_s
            _logger.error("%s process gave no sign of life for %.0f s: killed", self.name, limit_s)
            process.kill()

    def _died(self, process: BaseProcess) -> None:
        self._process = None
        self._gone.set()
        if self._stopping:
            return
        lived_s = time.monotonic() - self._started_at
        self._quick_deaths = 0 if lived_s >= _STABLE_S else self._quick_deaths + 1
        # The first death is answered at once; only a child that keeps dying has to wait.
        delay = _BACKOFF.pause_s(self._quick_deaths - 1)
        _logger.error("%s process ended (exit code %s): starts again in %.1f s", self.name, process.exitcode, delay)
        self._on_exit()
        assert self._loop is not None
        self._restart = self._loop.call_later(delay, self.start)


class _Closed:
    """Tells the writing thread to end."""


def run_child(main: ChildMain, pipe: Connection, pulse: Connection, settings: object) -> None:
    """Run a child's main function. Signals to the process group are the front's business: it drains first."""
    _give_sign(pulse)  # By this thread: one that freezes in its first moments is then known as started, and frozen.
    threading.Thread(target=_beat, args=(pulse,), name="pulse", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_logging()
    main(pipe, settings)


def _beat(pulse: Connection) -> None:
    while _give_sign(pulse):
        time.sleep(_PULSE_S)


def _give_sign(pulse: Connection) -> bool:
    """Say that this child lives; False where nobody listens: the front is gone, which ends the main function too."""
    with contextlib.suppress(OSError):
        pulse.send_bytes(b".")
        return True
    return False


def start_logging() -> None:
    """Log to standard error, our own lines from INFO up."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s")
    logging.getLogger("lorafleet_serving").setLevel(logging.INFO)

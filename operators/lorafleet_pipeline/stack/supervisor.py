"""The supervisor: a process that outlives `lorafleet up` and keeps the stack's components running.

It takes everything from the home folder, tells what it sees in `state.json`, and ends on SIGTERM after it has
stopped the components.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from lorafleet_pipeline.stack.components import STACK_ID, StackComponents
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.leftovers import stop_marked
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.process import ProcessMark
from lorafleet_pipeline.stack.reservations import PortReservations
from lorafleet_pipeline.stack.runner import ComponentRunner
from lorafleet_pipeline.stack.secrets import Secrets
from lorafleet_pipeline.stack.state import ComponentStatus, StackState

_LOG = logging.getLogger(__name__)
_LEFTOVER_LIMIT_S = 10.0


class Supervisor:
    """Runs the components of one home folder until it is told to stop."""

    def __init__(self, home: StackHome, stack_id: str) -> None:
        components = StackComponents(
            home,
            StackOptions.read(home.options),
            json.loads(home.ports.read_text()),
            Secrets.load_or_create(home.secrets),
        )
        mark = ProcessMark.of(os.getpid())
        assert mark is not None, "a running process has a mark"
        self._home = home
        self._lock = threading.Lock()
        self._stop_requested = threading.Event()
        self._runners = [
            ComponentRunner(plan, self._record, self._stop_requested) for plan in components.plans(stack_id)
        ]
        # The choice of ports was made under a lock that ends once the state is there to be seen.
        self._reservations = PortReservations()
        self._reservations.hold(components.ports.values())
        self._state = StackState(stack_id, mark, tuple(runner.status for runner in self._runners))

    def run(self) -> None:
        """Start everything, wait for SIGTERM, stop everything."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop_requested.set())
        self._state.write(self._home.state)
        for runner in self._runners:
            runner.connect(self._runners)
        for runner in self._runners:
            runner.start()
        self._stop_requested.wait()
        _LOG.info("stopping")
        for runner in self._runners:
            runner.join()
        # A training runs in a session of its own, beyond the reach of its component's group.
        stop_marked(STACK_ID, self._state.stack_id, _LEFTOVER_LIMIT_S)
        _LOG.info("stopped")

    def _record(self, status: ComponentStatus) -> None:
        with self._lock:
            self._state = self._state.with_component(status)
            self._state.write(self._home.state)


def main() -> None:
    """Detach from the caller, then supervise."""
    parser = argparse.ArgumentParser(description="Supervise the embedded stack of one home folder.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--stack-id", required=True)
    arguments = parser.parse_args()
    home = StackHome(arguments.home)
    _detach(home.log("supervisor"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # The client's library tells each request, which the health checks would fill the log with.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        Supervisor(home, arguments.stack_id).run()
    except Exception:
        _LOG.exception("the supervisor failed")
        raise SystemExit(1) from None


def _detach(log: Path) -> None:
    """Become a process of its own session, whose parent is gone, and which writes to a log."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    with log.open("ab") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    main()

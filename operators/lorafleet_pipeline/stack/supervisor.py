"""The supervisor: a process that outlives `lorafleet up` and keeps the stack's components running.

It takes everything from the home folder, tells what it sees in `state.json`, and ends on SIGTERM after it has
stopped the components.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.stack.components import STACK_ID, StackComponents
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.home_lock import HomeLock
from lorafleet_pipeline.stack.leftovers import stop_marked
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.ports import read_ports
from lorafleet_pipeline.stack.reservations import PortReservations
from lorafleet_pipeline.stack.runner import ComponentRunner
from lorafleet_pipeline.stack.secrets import Secrets
from lorafleet_pipeline.stack.state import ComponentStatus, StackState, home_name

_LOG = logging.getLogger(__name__)
_LEFTOVER_LIMIT_S = 10.0
_STARTED = "started"


class Supervisor:
    """Runs the components of one home folder until it is told to stop.

    Raises:
        StackError: another supervisor runs there, or a setting is wrong.
    """

    def __init__(self, home: StackHome, stack_id: str) -> None:
        self._alone = HomeLock(home.supervisor_lock)
        if not self._alone.take():
            raise StackError(
                f"another supervisor, process {self._alone.holder}, runs on {home.folder}: `lorafleet down` ends it"
            )
        components = StackComponents(
            home, StackOptions.read(home.options), read_ports(home.ports), Secrets.load_or_create(home.secrets)
        )
        process = ProcessIdentity.of(os.getpid())
        assert process is not None, "a running process has an entry in /proc"
        self._home = home
        self._lock = threading.Lock()
        self._stop_requested = threading.Event()
        self._runners = [
            ComponentRunner(plan, self._record, self._stop_requested) for plan in components.plans(stack_id)
        ]
        # The choice of ports was made under a lock that ends once the state is there to be seen.
        self._reservations = PortReservations()
        self._reservations.hold(components.ports.values())
        self._state = StackState(
            home_name(home.folder), stack_id, process, tuple(runner.status for runner in self._runners)
        )

    def start(self) -> None:
        """Tell the first state, and start everything."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop_requested.set())
        self._state.write(self._home.state)
        for runner in self._runners:
            runner.connect(self._runners)
        for runner in self._runners:
            runner.start()

    def run(self) -> None:
        """Wait for SIGTERM, then stop everything."""
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
            try:
                self._state.write(self._home.state)
            except OSError:
                # On a full disk the components are to run on, and to be stopped; the next change is told again.
                _LOG.exception("the state could not be told")


def main() -> None:
    """Detach from the caller, tell it whether the supervision began, then supervise."""
    parser = argparse.ArgumentParser(description="Supervise the embedded stack of one home folder.")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--stack-id", required=True)
    arguments = parser.parse_args()
    home = StackHome(arguments.home)
    caller = _detach(home.log("supervisor"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # The client's library tells each request, which the health checks would fill the log with.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        with caller:
            supervisor = _start(home, arguments.stack_id, caller)
        supervisor.run()
    except Exception:  # Nobody sees its standard error: the log must have the trace before it ends.
        _LOG.exception("the supervisor failed")
        raise SystemExit(1) from None


def _start(home: StackHome, stack_id: str, caller: TextIO) -> Supervisor:
    try:
        supervisor = Supervisor(home, stack_id)
        supervisor.start()
    except (StackError, OSError) as error:
        caller.write(str(error))
        raise
    caller.write(_STARTED)
    return supervisor


def _detach(log: Path) -> TextIO:
    """Become a process of its own session, which writes to a log.

    The process that the caller started stays until it has read the answer: `started`, or why not.
    """
    reader, writer = os.pipe()
    if os.fork() > 0:
        os.close(writer)
        with open(reader) as answer:
            told = answer.read()
        if told != _STARTED:
            sys.stderr.write(told)
        sys.stderr.flush()
        os._exit(0 if told == _STARTED else 1)
    os.close(reader)
    os.setsid()
    with log.open("ab") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return open(writer, "w")


if __name__ == "__main__":
    main()

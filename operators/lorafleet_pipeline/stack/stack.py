"""The embedded stack as one object: up, down, status.

This is the interface for other code and for the command line; it runs in the caller's process, while the
components belong to the supervisor.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.stack.components import STACK_ID, StackComponents
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.home_lock import HomeLock
from lorafleet_pipeline.stack.leftovers import stop_leftovers, stop_marked
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.ports import PortChoice, choose_ports, read_ports
from lorafleet_pipeline.stack.private_file import write_private
from lorafleet_pipeline.stack.process import stop_processes
from lorafleet_pipeline.stack.reservations import PortReservations
from lorafleet_pipeline.stack.seaweedfs import remove_sockets
from lorafleet_pipeline.stack.secrets import Secrets
from lorafleet_pipeline.stack.state import ComponentState, StackState
from lorafleet_pipeline.stack.status import OnProgress, StackStatus, read_status

MIN_FREE_BYTES = 2 << 30
_POLL_S = 0.2
_START_LIMIT_S = 90.0
_STOP_LIMIT_S = 90.0
_LEFTOVER_LIMIT_S = 15.0


class Stack:
    """The embedded stack of one home folder."""

    def __init__(self, home: Path | None = None, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self.home = StackHome.default() if home is None else StackHome(home.expanduser().absolute())
        self._min_free_bytes = min_free_bytes

    def up(self, options: StackOptions | None = None, on_progress: OnProgress | None = None) -> StackStatus:
        """Start the stack and wait until all of it is ready; what already runs is left alone.

        Raises:
            StackError: it could not be started. Nothing is left running then.
        """
        options = options or StackOptions()
        if not self.status().is_supervised:
            self._check_disk()
        self.home.create()
        with self._exclusive():
            running = self.status()
            if running.is_supervised:
                self._check_same(running, options)
                return self._await_ready(on_progress, ())
            self._recover()
            return self._start(options, on_progress)

    def down(self) -> bool:
        """Stop the stack and everything left of it; returns whether anything ran.

        Raises:
            StackError: another command is at work on this home folder, or a file there is damaged.
        """
        if not (self.home.state.is_file() or self.home.supervisor_lock.is_file()):
            return False
        with self._exclusive():
            return self._stop()

    def status(self) -> StackStatus:
        """What runs, as last seen by the supervisor, checked against the processes themselves.

        Raises:
            StackError: a file of the home folder is damaged.
        """
        return read_status(self.home)

    def _check_disk(self) -> None:
        existing = next(folder for folder in (self.home.folder, *self.home.folder.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if free < self._min_free_bytes:
            raise StackError(
                f"{free / 2**30:.1f} GiB are free on the disk of {self.home.folder}, "
                f"{self._min_free_bytes / 2**30:.0f} are needed: free some, or choose another folder with `--home`"
            )

    def _check_same(self, running: StackStatus, options: StackOptions) -> None:
        """Refuse what was asked for and is not so; what was left at its default is not asked for."""
        present = {entry.name for entry in running.components}
        others = [f"without {name}" for name in options.components if name not in present]
        started, ports = StackOptions.read(self.home.options), read_ports(self.home.ports)
        if options.model not in (StackOptions.model, started.model):
            others.append(f"with the base model {started.model}")
        if options.dags not in (StackOptions.dags, started.dags):
            others.append(f"with the DAG folder {started.dags_folder}")
        others += [f"with {name} on port {ports[name]}" for name in options.ports if ports[name] != options.ports[name]]
        if others:
            raise StackError(f"the stack of {self.home.folder} is up {', '.join(others)}: `lorafleet down` first")

    def _start(self, options: StackOptions, on_progress: OnProgress | None) -> StackStatus:
        stack_id = secrets.token_hex(16)
        try:
            return self._await_ready(on_progress, self._launch(options, stack_id).notes)
        except BaseException:
            self._stop()
            # Its state may not have been written yet.
            stop_marked(STACK_ID, stack_id, _LEFTOVER_LIMIT_S)
            raise

    def _launch(self, options: StackOptions, stack_id: str) -> PortChoice:
        """Settle ports, secrets and options, and start the supervisor."""
        reservations = PortReservations()
        with reservations.exclusive():
            choice = choose_ports(self.home.ports, options.ports, reservations.is_reserved)
            components = StackComponents(self.home, options, choice.ports, Secrets.load_or_create(self.home.secrets))
            lines = [f"{name}={value}" for name, value in components.environment().items()]
            write_private(self.home.environment, "\n".join(lines) + "\n")
            options.write(self.home.options)
            self._run_supervisor(stack_id)
        return choice

    def _run_supervisor(self, stack_id: str) -> None:
        """Start the supervisor, and wait until it has reserved the ports and written its first state."""
        command = (sys.executable, "-m", "lorafleet_pipeline.stack.supervisor")
        starter = subprocess.run(
            (*command, "--home", str(self.home.folder), "--stack-id", stack_id),
            # A module in the user's folder must not be taken for one of ours.
            cwd=self.home.folder,
            env={**os.environ, STACK_ID: stack_id},
            stderr=subprocess.PIPE,
            text=True,
            timeout=_START_LIMIT_S,
            check=False,
        )
        if starter.returncode != 0:
            reason = starter.stderr.strip() or f"the supervisor did not start: see {self.home.log('supervisor')}"
            raise StackError(reason.splitlines()[-1])

    def _await_ready(self, on_progress: OnProgress | None, notes: tuple[str, ...]) -> StackStatus:
        last: StackStatus | None = None
        while True:
            status = replace(self.status(), notes=notes)
            if status != last and on_progress is not None:
                on_progress(status)
            last = status
            failed = [entry for entry in status.components if entry.state is ComponentState.FAILED]
            if failed:
                raise StackError(failed[0].detail)
            if not status.is_supervised:
                raise StackError(f"the supervisor ended: see {self.home.log('supervisor')}")
            if status.is_ready:
                return status
            time.sleep(_POLL_S)

    def _stop(self) -> bool:
        was_supervised = self._stop_supervisor()
        return self._recover() or was_supervised

    def _stop_supervisor(self) -> bool:
        """End the supervisor, which ends the components; it is found even where its state was lost."""
        pid = HomeLock(self.home.supervisor_lock).holder
        supervisor = None if pid is None else ProcessIdentity.of(pid)
        if supervisor is None:
            return False
        stop_processes([supervisor], _STOP_LIMIT_S)
        return True

    def _recover(self) -> bool:
        """Stop what a supervisor that was killed has left; returns whether there was any."""
        state = StackState.read(self.home.state)
        if state is None:
            return False
        stopped = stop_leftovers(state, STACK_ID, _LEFTOVER_LIMIT_S)
        remove_sockets(read_ports(self.home.ports))
        components = tuple(
            replace(entry, state=ComponentState.STOPPED, process=None, ready_since=None) for entry in state.components
        )
        replace(state, components=components).write(self.home.state)
        return bool(stopped)

    def _exclusive(self) -> AbstractContextManager[None]:
        refusal = f"another `lorafleet up` or `down` works on {self.home.folder}: wait for it to end"
        return HomeLock(self.home.lock).held(refusal)

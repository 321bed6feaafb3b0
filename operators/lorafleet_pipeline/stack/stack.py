"""The embedded stack as one object: up, down, status.

This is the interface for other code and for the command line; it runs in the caller's process, while the
components belong to the supervisor.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.airflow import USER
from lorafleet_pipeline.stack.components import STACK_ID, StackComponents
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.leftovers import stop_leftovers
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.ports import PortChoice, choose_ports
from lorafleet_pipeline.stack.private_file import write_private
from lorafleet_pipeline.stack.reservations import PortReservations
from lorafleet_pipeline.stack.secrets import Secrets
from lorafleet_pipeline.stack.state import ComponentState, ComponentStatus, StackState

MIN_FREE_BYTES = 2 << 30
_POLL_S = 0.2
_STOP_LIMIT_S = 90.0
_LEFTOVER_LIMIT_S = 15.0
_ADDRESSED = {"airflow": "airflow-api-server", "mlflow": "mlflow", "pod": "pod", "s3": "s3"}


@dataclass(frozen=True)
class StackUrls:
    """Addresses of what the stack serves; None for what is not part of it."""

    airflow: str | None = None
    mlflow: str | None = None
    pod: str | None = None
    s3: str | None = None


@dataclass(frozen=True)
class StackStatus:
    """The stack as it is now."""

    home: Path
    is_supervised: bool
    components: tuple[ComponentStatus, ...] = ()
    urls: StackUrls = StackUrls()
    airflow_user: str | None = None
    airflow_password: str | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether every component is ready."""
        return self.is_supervised and all(entry.state is ComponentState.READY for entry in self.components)


OnProgress = Callable[[StackStatus], None]


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
        self._check_disk()
        self.home.create()
        with self._exclusive():
            running = self.status()
            if running.is_supervised:
                self._check_same(running, options)
                return self._await_ready(on_progress, ())
            self._recover()
            notes = self._launch(options)
            try:
                return self._await_ready(on_progress, notes)
            except BaseException:
                self._stop()
                raise

    def down(self) -> bool:
        """Stop the stack and everything left of it; returns whether anything ran.

        Raises:
            StackError: another command is at work on this home folder.
        """
        if not self.home.folder.is_dir():
            return False
        with self._exclusive():
            return self._stop()

    def status(self) -> StackStatus:
        """What runs, as last seen by the supervisor, checked against the processes themselves."""
        state = StackState.read(self.home.state)
        if state is None:
            return StackStatus(self.home.folder, is_supervised=False)
        is_supervised = state.supervisor.is_alive
        components = state.components if is_supervised else tuple(_unsupervised(entry) for entry in state.components)
        addresses = {entry.name: entry.url for entry in components}
        has_airflow = _ADDRESSED["airflow"] in addresses
        return StackStatus(
            home=self.home.folder,
            is_supervised=is_supervised,
            components=components,
            urls=StackUrls(**{name: addresses.get(component) for name, component in _ADDRESSED.items()}),
            airflow_user=USER if has_airflow else None,
            airflow_password=Secrets.load_or_create(self.home.secrets).airflow_password if has_airflow else None,
        )

    def _check_disk(self) -> None:
        existing = next(folder for folder in (self.home.folder, *self.home.folder.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if free < self._min_free_bytes:
            raise StackError(
                f"{free / 2**30:.1f} GiB are free on the disk of {self.home.folder}, "
                f"{self._min_free_bytes / 2**30:.0f} are needed: free some, or choose another folder with `--home`"
            )

    def _check_same(self, running: StackStatus, options: StackOptions) -> None:
        present = {entry.name for entry in running.components}
        missing = [name for name in options.components if name not in present]
        if missing:
            raise StackError(
                f"the stack of {self.home.folder} is up without {', '.join(missing)}: `lorafleet down` first"
            )

    def _launch(self, options: StackOptions) -> tuple[str, ...]:
        """Settle ports, secrets and options, and start the supervisor."""
        reservations = PortReservations()
        with reservations.exclusive():
            return self._launch_on(choose_ports(self.home.ports, options.ports, reservations.is_reserved), options)

    def _launch_on(self, choice: PortChoice, options: StackOptions) -> tuple[str, ...]:
        components = StackComponents(self.home, options, choice.ports, Secrets.load_or_create(self.home.secrets))
        lines = [f"{name}={value}" for name, value in components.environment().items()]
        write_private(self.home.environment, "\n".join(lines) + "\n")
        options.write(self.home.options)
        stack_id = secrets.token_hex(16)
        command = (sys.executable, "-m", "lorafleet_pipeline.stack.supervisor")
        subprocess.run((*command, "--home", str(self.home.folder), "--stack-id", stack_id), check=True)
        self._await_supervisor(stack_id)
        return choice.notes

    def _await_supervisor(self, stack_id: str) -> None:
        deadline = time.monotonic() + _STOP_LIMIT_S
        while (state := StackState.read(self.home.state)) is None or state.stack_id != stack_id:
            if time.monotonic() > deadline:
                raise StackError(f"the supervisor did not start: see {self.home.log('supervisor')}")
            time.sleep(_POLL_S)

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
        state = StackState.read(self.home.state)
        if state is None:
            return False
        was_supervised = state.supervisor.is_alive
        if was_supervised:
            os.kill(state.supervisor.pid, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_LIMIT_S
            while state.supervisor.is_alive and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            if state.supervisor.is_alive:
                os.kill(state.supervisor.pid, signal.SIGKILL)
        return self._recover() or was_supervised

    def _recover(self) -> bool:
        """Stop what a supervisor that was killed has left; returns whether there was any."""
        state = StackState.read(self.home.state)
        if state is None:
            return False
        stopped = stop_leftovers(state, STACK_ID, _LEFTOVER_LIMIT_S)
        components = tuple(
            replace(entry, state=ComponentState.STOPPED, process=None, ready_since=None) for entry in state.components
        )
        replace(state, components=components).write(self.home.state)
        return bool(stopped)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self.home.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError(
                    f"another `lorafleet up` or `down` works on {self.home.folder}: wait for it to end"
                ) from None
            yield


def _unsupervised(entry: ComponentStatus) -> ComponentStatus:
    is_left = entry.process is not None and entry.process.is_alive
    state = ComponentState.ORPHANED if is_left else ComponentState.STOPPED
    detail = "its supervisor is gone: `lorafleet down` stops it" if is_left else ""
    return replace(entry, state=state, detail=detail, process=entry.process if is_left else None, ready_since=None)

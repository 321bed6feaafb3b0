"""What the supervisor tells about the stack: written to `state.json` by it alone, read by everyone."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.process_identity import ProcessIdentity
from lorafleet_pipeline.stack.private_file import write_private


class ComponentState(enum.StrEnum):
    """Where a component stands."""

    WAITING = "waiting"
    PREPARING = "preparing"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    BACKING_OFF = "backing off"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ORPHANED = "orphaned"


@dataclass(frozen=True)
class ComponentStatus:
    """One component as last seen. Times are unix seconds."""

    name: str
    state: ComponentState
    log: str
    detail: str = ""
    url: str | None = None
    process: ProcessIdentity | None = None
    restarts: int = 0
    ready_since: float | None = None

    @property
    def pid(self) -> int | None:
        """The pid of its process, if it has one."""
        return self.process.pid if self.process else None


@dataclass(frozen=True)
class StackState:
    """The whole stack as last seen. `stack_id` stands in the environment of all its processes.

    `home` is the folder that it was started in: a copy of that folder has no right to its processes.
    """

    home: str
    stack_id: str
    supervisor: ProcessIdentity
    components: tuple[ComponentStatus, ...]

    def with_component(self, status: ComponentStatus) -> StackState:
        """This state with one component's status replaced."""
        components = tuple(status if known.name == status.name else known for known in self.components)
        return replace(self, components=components)

    def write(self, path: Path) -> None:
        """Replace the state file."""
        write_private(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> StackState | None:
        """The state last written, or None when no supervisor ever ran in this folder.

        Raises:
            StackError: the file cannot be understood.
        """
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text())
            state = cls(
                home=document["home"],
                stack_id=document["stack_id"],
                supervisor=ProcessIdentity(**document["supervisor"]),
                components=tuple(_component(entry) for entry in document["components"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StackError(
                f"{path} is damaged: `lorafleet down` mends it while the stack runs, else delete it and `lorafleet up`"
            ) from error
        return state if state.home == home_name(path.parent) else None


def home_name(folder: Path) -> str:
    """How a state names the folder that it belongs to."""
    return str(folder.resolve())


def _component(entry: Mapping[str, Any]) -> ComponentStatus:
    process = entry["process"]
    known = {name: value for name, value in entry.items() if name not in ("state", "process")}
    return ComponentStatus(
        **known, state=ComponentState(entry["state"]), process=ProcessIdentity(**process) if process else None
    )

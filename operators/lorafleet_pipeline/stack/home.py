"""The stack's home folder: where each of its files stands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lorafleet_pipeline.settings import STACK_ENV_FILE


@dataclass(frozen=True)
class StackHome:
    """Paths inside one home folder. Everything the stack writes stands below it, base models apart."""

    folder: Path

    @classmethod
    def default(cls) -> StackHome:
        """`LORAFLEET_HOME`, or `~/.lorafleet`."""
        return cls(Path(os.environ.get("LORAFLEET_HOME") or "~/.lorafleet").expanduser().absolute())

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets.json"

    @property
    def ports(self) -> Path:
        return self.folder / "ports.json"

    @property
    def options(self) -> Path:
        return self.folder / "options.json"

    @property
    def state(self) -> Path:
        return self.folder / "state.json"

    @property
    def environment(self) -> Path:
        return self.folder / STACK_ENV_FILE

    @property
    def lock(self) -> Path:
        return self.folder / ".lock"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def adapters(self) -> Path:
        """Specs that stand beside those of the DAG folder."""
        return self.folder / "adapters"

    def log(self, component: str) -> Path:
        """The log of one component."""
        return self.folder / "logs" / f"{component}.log"

    def create(self) -> None:
        """Make the folders; none but the owner may enter."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        (self.folder / "logs").mkdir(exist_ok=True)
        self.work.mkdir(exist_ok=True)
        self.adapters.mkdir(exist_ok=True)

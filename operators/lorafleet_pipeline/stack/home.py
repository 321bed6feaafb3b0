"""The stack's home folder: where each of its files stands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lorafleet_pipeline.exceptions import StackError
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
        """Held by the command that changes the stack."""
        return self.folder / ".lock"

    @property
    def supervisor_lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.folder / ".supervisor"

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
        """Make the folders; none but the owner may enter.

        Raises:
            StackError: they cannot be made, or the folder is used for something else.
        """
        if self._is_foreign:
            raise StackError(
                f"{self.folder} holds other files and no stack: choose an empty or new folder with `--home`"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            for folder in (self.folder / "logs", self.work, self.adapters):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StackError(
                f"the home folder {self.folder} cannot be made ({error.strerror}): choose another with `--home`"
            ) from error

    @property
    def _is_foreign(self) -> bool:
        """Whether the folder is someone's who would miss its mode and be surprised by our files."""
        if not self.folder.is_dir():
            return False
        names = {path.name for path in self.folder.iterdir()}
        ours = {self.lock.name, self.secrets.name, self.ports.name, self.work.name}
        return bool(names) and names.isdisjoint(ours) and not any(name.startswith("pod-") for name in names)

"""The stack as a caller sees it: what the supervisor told last, checked against the processes themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorafleet_pipeline.stack.airflow import USER
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.secrets import Secrets
from lorafleet_pipeline.stack.state import ComponentState, ComponentStatus, StackState

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


def read_status(home: StackHome) -> StackStatus:
    """What runs in a home folder; nothing is changed there.

    Raises:
        StackError: a file of the folder is damaged.
    """
    state = StackState.read(home.state)
    if state is None:
        return StackStatus(home.folder, is_supervised=False)
    is_supervised = state.supervisor.is_alive
    components = state.components if is_supervised else tuple(_unsupervised(entry) for entry in state.components)
    addresses = {entry.name: entry.url for entry in components}
    has_login = _ADDRESSED["airflow"] in addresses and home.secrets.is_file()
    return StackStatus(
        home=home.folder,
        is_supervised=is_supervised,
        components=components,
        urls=StackUrls(**{name: addresses.get(component) for name, component in _ADDRESSED.items()}),
        airflow_user=USER if has_login else None,
        airflow_password=Secrets.load_or_create(home.secrets).airflow_password if has_login else None,
    )


def _unsupervised(entry: ComponentStatus) -> ComponentStatus:
    is_left = entry.process is not None and entry.process.is_alive
    state = ComponentState.ORPHANED if is_left else ComponentState.STOPPED
    detail = "its supervisor is gone: `lorafleet down` stops it" if is_left else ""
    return replace(entry, state=state, detail=detail, process=entry.process if is_left else None, ready_since=None)

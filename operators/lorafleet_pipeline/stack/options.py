"""What a user asks of `lorafleet up`: which components, which base model, which DAGs, which ports."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorafleet_pipeline.base_models import DEFAULT_BASE_MODEL
from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.ports import check_ports
from lorafleet_pipeline.stack.private_file import write_private

AIRFLOW_COMPONENTS = ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")
ALL_COMPONENTS = ("s3", "mlflow", "pod", *AIRFLOW_COMPONENTS)
_GROUPS = {"airflow": AIRFLOW_COMPONENTS, "all": ALL_COMPONENTS}


@dataclass(frozen=True)
class StackOptions:
    """Options of one start. They hold no secret."""

    components: tuple[str, ...] = ALL_COMPONENTS
    model: str = DEFAULT_BASE_MODEL
    dags: str | None = None
    ports: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.components if name not in ALL_COMPONENTS]
        if unknown or not self.components:
            raise StackError(
                f"unknown component {', '.join(unknown) or '(none)'}: choose among airflow, {', '.join(ALL_COMPONENTS)}"
            )
        check_ports(self.ports)
        # The supervisor and the components work in folders of their own, where a relative path would lead astray.
        if self.dags is not None:
            object.__setattr__(self, "dags", _absolute(self.dags))
            _ = self.dags_folder
        if Path(self.model).expanduser().exists():
            object.__setattr__(self, "model", _absolute(self.model))

    @property
    def dags_folder(self) -> Path:
        """The DAG folder: the one given, else the repository's, else the installed copy.

        Raises:
            StackError: there is none.
        """
        if self.dags is not None:
            folder = Path(self.dags)
            if not folder.is_dir():
                raise StackError(f"the DAG folder {folder} does not exist: correct `--dags`")
            return folder
        for folder in _dag_folders():
            if any(folder.glob("*.py")):
                return folder
        raise StackError("no DAG folder was found beside the package: name one with `--dags`")

    def write(self, path: Path) -> None:
        """Keep the options for the supervisor."""
        write_private(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> StackOptions:
        """The options of the last start.

        Raises:
            StackError: the file cannot be understood.
        """
        try:
            document = json.loads(path.read_text())
            return cls(**(document | {"components": tuple(document["components"])}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StackError(f"{path} is damaged: `lorafleet down` and `lorafleet up` write it anew") from error


def expand_components(names: Iterable[str]) -> tuple[str, ...]:
    """Component names in their order of start, with `airflow` standing for all of Airflow's."""
    wanted = {part for name in names for part in _GROUPS.get(name, (name,))}
    known = tuple(name for name in ALL_COMPONENTS if name in wanted)
    return (*known, *sorted(wanted - set(known)))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _dag_folders() -> tuple[Path, ...]:
    """The checkout's folder, and the copy that travels with the provider where there is no checkout."""
    repository = Path(__file__).resolve().parents[3]
    provider = importlib.util.find_spec("lorafleet_airflow")
    packages = (provider.submodule_search_locations or []) if provider else []
    return (repository / "dags", *(Path(package) / "dags" for package in packages))

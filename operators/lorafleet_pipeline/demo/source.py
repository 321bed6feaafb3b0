"""Where the demo's data comes from: Python's standard library, a task folder, or a folder of the user's."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorafleet_pipeline.exceptions import DemoError
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec, load_spec, parse_spec

DEFAULT_TASK = "docstrings"
TASK_DATA_VARIABLE = "LORAFLEET_TASK_DATA"


@dataclass(frozen=True)
class DemoSource:
    """What the demo trains on: a task that has a spec, or a folder with templates."""

    task: str = DEFAULT_TASK
    data: Path | None = None
    prompt: str | None = None
    completion: str | None = None
    metric: str = "rougeL"
    base_model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"


def find_spec(source: DemoSource, dags_folder: Path) -> AdapterSpec:
    """The spec of the task, or one over the user's folder; nothing is read or put anywhere yet.

    Raises:
        DemoError: the task is not there, the templates are not given, or the folder's name is taken.
        InvalidSpec: the task's spec, the folder's name or a template is wrong.
        DatasetUnreadable: the folder holds no file of rows.
    """
    if source.data is not None:
        return _own_spec(source, source.data, dags_folder)
    path = dags_folder / "adapters" / f"{source.task}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise DemoError(
            f"task {source.task!r} has no spec at {path}: choose one of {known}, or give a folder by --data"
        )
    if source.task != DEFAULT_TASK:
        _task_folder(source.task)
    return load_spec(path)


def place_dataset(source: DemoSource, spec: AdapterSpec, settings: PlatformSettings) -> AdapterSpec:
    """Put the data on S3 and return the spec whose DAG will train on it.

    Raises:
        DatasetError: the data cannot be read.
        StorageError: S3 cannot be reached.
    """
    if source.data is not None:
        return _place_own_data(source.data, spec, settings)
    if source.task == DEFAULT_TASK:
        _place_docstrings(settings)
    else:
        _upload(_task_folder(source.task), source.task, settings)
    return spec


def _place_docstrings(settings: PlatformSettings) -> None:
    from lorafleet_pipeline.datasets.demo import build_docstring_dataset

    with tempfile.TemporaryDirectory() as folder:
        build_docstring_dataset(Path(folder))
        _upload(Path(folder), DEFAULT_TASK, settings)


def _own_spec(source: DemoSource, folder: Path, dags_folder: Path) -> AdapterSpec:
    from lorafleet_pipeline.datasets.upload import find_splits

    find_splits(folder)
    if source.prompt is None or source.completion is None:
        raise DemoError(
            "--data needs --prompt and --completion: templates over the columns, such as 'Text: {{ text }}\\nLabel:'"
        )
    document = {
        "name": folder.resolve().stem,
        "base_model": source.base_model,
        "dataset": {"train": str(folder)},
        "prompt": source.prompt,
        "completion": source.completion,
        "training": {"learning_rate": 3e-4},
        "evaluation": {"metric": source.metric, "stop": ["\n"] if source.completion.endswith("\n") else []},
        "promotion": {"policy": "auto"},
    }
    spec = parse_spec(document, source=f"--data {folder}")
    taken = dags_folder / "adapters" / f"{spec.name}.yaml"
    if taken.is_file():
        raise DemoError(f"the name {spec.name!r} of {folder} is taken by {taken}: rename the folder or file")
    return spec


def _place_own_data(folder: Path, spec: AdapterSpec, settings: PlatformSettings) -> AdapterSpec:
    from lorafleet_pipeline.datasets.upload import upload_dataset

    if settings.adapters_dir is None:
        raise DemoError("LORAFLEET_ADAPTERS_DIR is not set: start the stack again by `lorafleet up`")
    spec = spec.model_copy(update={"dataset": upload_dataset(folder, spec.name, settings)})
    settings.adapters_dir.mkdir(parents=True, exist_ok=True)
    (settings.adapters_dir / f"{spec.name}.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    return spec


def _task_folder(task: str) -> Path:
    root = os.environ.get(TASK_DATA_VARIABLE)
    if not root:
        raise DemoError(f"{TASK_DATA_VARIABLE} is not set: set it to the folder that holds {task}/train.jsonl")
    folder = Path(root).expanduser() / task
    if not folder.is_dir():
        raise DemoError(f"{folder} does not exist: check {TASK_DATA_VARIABLE} and the name of the task")
    return folder


def _upload(folder: Path, name: str, settings: PlatformSettings) -> None:
    from lorafleet_pipeline.datasets.upload import upload_dataset

    upload_dataset(folder, name, settings)

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


def place_dataset(source: DemoSource, dags_folder: Path, settings: PlatformSettings) -> AdapterSpec:
    """Put the data on S3 and return the spec whose DAG will train on it.

    Raises:
        DemoError: the task or the folder is not there, or its templates are not given.
        DatasetError: the data cannot be read.
        StorageError: S3 cannot be reached.
    """
    if source.data is not None:
        return _place_own_data(source, source.data, settings)
    path = dags_folder / "adapters" / f"{source.task}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise DemoError(
            f"task {source.task!r} has no spec at {path}: choose one of {known}, or give a folder by --data"
        )
    spec = load_spec(path)
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


def _place_own_data(source: DemoSource, folder: Path, settings: PlatformSettings) -> AdapterSpec:
    if not folder.exists():
        raise DemoError(f"{folder} does not exist: give the folder or file of your data by --data")
    if source.prompt is None or source.completion is None:
        raise DemoError(
            "--data needs --prompt and --completion: templates over the columns, such as 'Text: {{ text }}\\nLabel:'"
        )
    from lorafleet_pipeline.datasets.upload import upload_dataset

    name = folder.resolve().stem
    document = {
        "name": name,
        "base_model": source.base_model,
        "dataset": upload_dataset(folder, name, settings).model_dump(exclude_none=True, exclude_defaults=True),
        "prompt": source.prompt,
        "completion": source.completion,
        "training": {"learning_rate": 3e-4},
        "evaluation": {"metric": source.metric, "stop": ["\n"] if source.completion.endswith("\n") else []},
        "promotion": {"policy": "auto"},
    }
    spec = parse_spec(document, source="--data")
    if settings.adapters_dir is None:
        raise DemoError("LORAFLEET_ADAPTERS_DIR is not set: start the stack again by `lorafleet up`")
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

"""Small datasets with known defects, written by code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorafleet_pipeline.settings import PlatformSettings, S3Settings
from lorafleet_pipeline.spec import AdapterSpec, parse_spec

Row = dict[str, Any]

_NOUNS = ("ship", "river", "harbour", "lamp", "garden", "violin", "window", "mountain", "letter", "bridge")


def clean_rows(count: int, start: int = 0) -> list[Row]:
    """Rows without defect, all different."""
    return [
        {"text": f"the {_NOUNS[n % 10]} of case {n} stands by number {n * 7}", "label": ("old", "new")[n % 2]}
        for n in range(start, start + count)
    ]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows and return the address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return str(path)


def write_splits(folder: Path, **splits: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Write one file a split and return their addresses, as the spec's dataset section."""
    return {name: write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in splits.items()}


def make_spec(dataset: Mapping[str, Any], **changes: Any) -> AdapterSpec:
    """A spec over the columns `text` and `label`; its base is nowhere, so lengths are estimates."""
    document: dict[str, Any] = {
        "name": "planted",
        "base_model": "nobody/no-such-model",
        "dataset": dict(dataset),
        "prompt": "Text: {{ text }}\nLabel:",
        "completion": " {{ label }}\n",
        "evaluation": {"metric": "accuracy", "stop": ["\n"]},
    }
    return parse_spec(document | changes, source="test")


def make_settings(folder: Path, **changes: Any) -> PlatformSettings:
    """Settings that keep everything in one folder."""
    values: dict[str, Any] = {
        "home": folder,
        "work_dir": folder / "work",
        "mlflow_url": "",
        "s3": S3Settings(),
        "datasets_url": str(folder / "datasets"),
        "docs_url": str(folder / "docs"),
    }
    return PlatformSettings(**(values | changes))

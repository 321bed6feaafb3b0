from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.datasets.planted import clean_rows, write_splits

Answer = subprocess.CompletedProcess[str]


def _run(folder: Path, *arguments: str, **variables: str) -> Answer:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LORAFLEET_", "AWS_"))}
    environ |= {"LORAFLEET_HOME": str(folder / "home"), "LORAFLEET_DOCS_URL": str(folder / "docs")} | variables
    return subprocess.run(
        [sys.executable, "-m", "lorafleet_cli.main", "validate", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        check=False,
    )


@pytest.fixture
def spec_path(tmp_path: Path) -> Path:
    dataset = write_splits(
        tmp_path / "data", train=clean_rows(40), validation=clean_rows(10, 100), test=clean_rows(10, 200)
    )
    return _write(tmp_path, dataset=dataset)


def _write(folder: Path, **changes: Any) -> Path:
    document = {
        "name": "planted",
        "base_model": "nobody/no-such-model",
        "prompt": "{{ text }}\nLabel:",
        "completion": " {{ label }}\n",
        "evaluation": {"metric": "accuracy"},
    }
    path = folder / "planted.yaml"
    path.write_text(yaml.safe_dump(document | changes))
    return path


def test_json_is_the_report_alone(tmp_path: Path, spec_path: Path) -> None:
    answer = _run(tmp_path, str(spec_path), "--json", "--run", "r1")
    assert answer.returncode == 0, answer.stderr
    report = json.loads(answer.stdout)
    assert report["success"]
    assert report["splits"]["train"]["examples"] == 40
    assert (tmp_path / "home" / "work" / "planted" / "r1" / "dataset" / "manifest.json").is_file()


def test_text_names_splits_and_where_the_docs_are(tmp_path: Path, spec_path: Path) -> None:
    answer = _run(tmp_path, str(spec_path))
    assert answer.returncode == 0, answer.stderr
    assert "none critical failed" in answer.stdout
    assert "index.html" in answer.stdout
    assert "local-" in answer.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": 3}, "epochs: unknown key"),
        ({"prompt": "{{ txet }}"}, "names column 'txet'"),
        ({"dataset": {"train": "/no/such.jsonl"}}, "/no/such.jsonl does not exist"),
        ({"dataset": {"train": "s3://datasets/x.jsonl"}}, "s3://datasets/x.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_a_failure(
    tmp_path: Path, spec_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = _write(tmp_path, **({"dataset": yaml.safe_load(spec_path.read_text())["dataset"]} | changes))
    nowhere = {"LORAFLEET_S3_ENDPOINT": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    answer = _run(tmp_path, str(path), **nowhere)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert says in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not answer.stdout

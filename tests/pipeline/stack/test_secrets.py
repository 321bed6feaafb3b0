"""Secrets: made once, kept private, never shown."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.secrets import Secrets


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_made_once_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    made = Secrets.load_or_create(path)
    assert Secrets.load_or_create(path) == made
    assert _mode(path) == 0o600
    values = [getattr(made, entry.name) for entry in fields(made)]
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 16


def test_mode_that_was_lost_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    Secrets.load_or_create(path)
    path.chmod(0o644)
    Secrets.load_or_create(path)
    assert _mode(path) == 0o600


def test_secrets_do_not_show_when_printed(tmp_path: Path) -> None:
    made = Secrets.load_or_create(tmp_path / "secrets.json")
    assert repr(made) == "Secrets()"


@pytest.mark.parametrize("content", ["", "[]", '{"admin_token": "x"}'])
def test_damaged_file_is_an_error_with_a_remedy(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(content)
    with pytest.raises(StackError, match="is damaged: restore it, or delete it"):
        Secrets.load_or_create(path)
    assert path.read_text() == content


@pytest.mark.parametrize("missing", ["s3_mlflow_key", "s3_audit_secret"])
def test_key_of_s3_that_a_home_lacks_is_made_once_and_the_others_stay(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "secrets.json"
    before = asdict(Secrets.load_or_create(path))
    path.write_text(json.dumps({name: value for name, value in before.items() if name != missing}))
    completed = Secrets.load_or_create(path)
    assert {name for name, value in asdict(completed).items() if value != before[name]} == {missing}
    assert Secrets.load_or_create(path) == completed
    assert _mode(path) == 0o600


def test_file_of_an_older_version_is_completed_by_no_guess(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    Secrets.load_or_create(path)
    document = json.loads(path.read_text())
    del document["gate_key"]
    path.write_text(json.dumps(document))
    with pytest.raises(StackError):
        Secrets.load_or_create(path)

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lorafleet_serving.api_keys import ApiKeys, Scope
from lorafleet_serving.exceptions import InvalidSetting


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": entries}))
    return path


def test_keys_are_found_by_what_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"keys:\n  - {{name: search, sha256: {digest('a')}, weight: 2, max_priority: 1, scopes: [versions]}}\n"
        f"  - {{name: batch, sha256: {digest('b')}, max_waiting: 3}}\n"
    )
    keys = ApiKeys.read(path)
    search, batch = keys.find("a"), keys.find("b")
    assert search is not None
    assert (search.tenant.weight, search.max_priority, search.scopes) == (2.0, 1, frozenset({Scope.VERSIONS}))
    assert batch is not None
    assert (batch.tenant.weight, batch.tenant.max_waiting, batch.scopes) == (1.0, 3, frozenset())
    assert keys.find("c") is None
    assert keys.find("") is None
    assert keys.find(digest("a")) is None


def test_digest_shows_nowhere(tmp_path: Path) -> None:
    keys = ApiKeys.read(write(tmp_path, {"name": "search", "sha256": digest("a")}))
    assert digest("a") not in repr(list(keys))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "Nope Nope"}, "name"),
        ({"name": "anonymous"}, "name"),
        ({"name": 3}, "name"),
        ({"sha256": "abc"}, "sha256"),
        ({"weight": 0}, "weight"),
        ({"weight": True}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"max_priority": 3}, "max_priority"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"scopes": ["root"]}, "scopes"),
        ({"scopes": [["versions"]]}, "scopes"),
        ({"scopes": "versions"}, "scopes"),
        ({"key": "in the clear"}, "may have"),
    ],
)
def test_wrong_entry_is_refused_by_its_number_and_field(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    good = {"name": "good", "sha256": digest("good")}
    path = write(tmp_path, good, {"name": "search", "sha256": digest("a"), **change})
    with pytest.raises(InvalidSetting, match="key 2") as caught:
        ApiKeys.read(path)
    assert named in str(caught.value)
    assert digest("a") not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "keys: []", "keys: {}", "keys: [", "others: []", "keys: [1]", "\0"])
def test_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(InvalidSetting, match="api_keys"):
        ApiKeys.read(tmp_path / "keys.yaml")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="cannot be read"):
        ApiKeys.read(tmp_path / "none.yaml")


@pytest.mark.parametrize("field", ["name", "sha256"])
def test_two_keys_that_cannot_be_told_apart_are_refused(tmp_path: Path, field: str) -> None:
    one, two = {"name": "one", "sha256": digest("a")}, {"name": "two", "sha256": digest("b")}
    two[field] = one[field]
    with pytest.raises(InvalidSetting, match=f"one {field}"):
        ApiKeys.read(write(tmp_path, one, two))

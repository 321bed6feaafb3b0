"""Keys that follow their file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lorafleet_serving import key_file
from lorafleet_serving.api_keys import ApiKeys
from lorafleet_serving.exceptions import InvalidSetting, QuotaExceeded
from lorafleet_serving.key_file import KeyFile


def write(path: Path, **keys: dict[str, Any]) -> None:
    """Put keys into the file in one move, as an operator or a mounted secret does."""
    entries = [{"name": name, "sha256": _digest(name), **rest} for name, rest in keys.items()]
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"keys": entries}))
    os.replace(beside, path)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    write(path, search={}, batch={})
    return path


async def test_keys_come_change_and_go_with_the_file(path: Path) -> None:
    held = KeyFile(path)
    assert not await held.look()
    write(path, search={"weight": 3}, other={})
    assert await held.look()
    search = held.keys.find("search")
    assert search is not None
    assert search.weight == 3.0
    assert held.keys.find("other") is not None
    assert held.keys.find("batch") is None
    assert not await held.look()


@pytest.mark.parametrize("text", ["", "keys: [", '{"keys": [{"name": "search"}]}', None])
async def test_a_file_that_is_wrong_or_gone_leaves_the_keys_and_says_why(path: Path, text: str | None) -> None:
    held = KeyFile(path)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert not await held.look()
    assert held.error is not None
    assert str(path) in held.error
    assert held.keys.find("batch") is not None
    write(path, search={})
    assert await held.look()
    assert held.error is None
    assert held.keys.find("batch") is None


async def test_what_a_key_had_is_remembered_when_the_file_changes(path: Path) -> None:
    write(path, search={"requests_per_minute": 2})
    held = KeyFile(path)
    search = held.keys.find("search")
    assert search is not None
    quota = held.quota(search)
    quota.take_request()
    quota.take_request()
    write(path, search={"requests_per_minute": 2, "weight": 2}, other={})
    assert await held.look()
    search = held.keys.find("search")
    assert search is not None
    with pytest.raises(QuotaExceeded):
        held.quota(search).take_request()


async def test_a_look_that_fails_is_not_the_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "LOOK_S", 0.01)
    held, seen = KeyFile(path), asyncio.Event()
    failures = iter([OSError("an accident")])

    def read(file: Path) -> ApiKeys:
        for failure in failures:
            raise failure
        return ApiKeys.read(file)

    monkeypatch.setattr(key_file, "ApiKeys", type("Reader", (), {"read": staticmethod(read)}))
    write(path, other={})
    following = asyncio.create_task(held.follow(lambda _: seen.set()))
    async with asyncio.timeout(30):
        await seen.wait()
    following.cancel()
    assert held.keys.find("other") is not None


def test_a_file_that_is_wrong_at_first_is_refused(path: Path) -> None:
    path.write_text("keys: []")
    with pytest.raises(InvalidSetting, match="at least one key"):
        KeyFile(path)

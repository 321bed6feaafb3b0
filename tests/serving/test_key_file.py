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


async def look_twice(held: KeyFile) -> bool:
    """A change counts once it has stood still."""
    assert not await held.look()
    return await held.look()


async def test_keys_come_change_and_go_with_the_file(path: Path) -> None:
    held = KeyFile(path)
    assert not await held.look()
    write(path, search={"weight": 3}, other={})
    assert await look_twice(held)
    search = held.keys.find("search")
    assert search is not None
    assert search.weight == 3.0
    assert held.keys.find("other") is not None
    assert held.keys.find("batch") is None
    assert not await held.look()


@pytest.mark.parametrize(
    "text", ["", "keys: [", "keys: 2024-13-45", "[" * 100_000, '{"keys": [{"name": "search"}]}', None]
)
async def test_a_file_that_is_wrong_or_gone_leaves_the_keys_and_says_why(path: Path, text: str | None) -> None:
    held = KeyFile(path)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    assert not await look_twice(held)
    assert held.error is not None
    assert str(path) in held.error
    assert held.keys.find("batch") is not None
    write(path, search={})
    assert await look_twice(held)
    assert held.error is None
    assert held.keys.find("batch") is None


async def test_a_file_that_is_back_as_it_was_is_wrong_no_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = KeyFile(path)

    def refuse(_: Path) -> ApiKeys:
        raise InvalidSetting("the volume is away")

    with monkeypatch.context() as away:
        away.setattr("lorafleet_serving.key_file._Mark.of", lambda _: None)
        away.setattr("lorafleet_serving.api_keys.ApiKeys.read", refuse)
        assert not await look_twice(held)
        assert held.error == "the volume is away"
    assert not await held.look()
    assert held.error is None
    assert held.keys.find("batch") is not None


async def test_a_file_that_is_being_written_is_let_alone(path: Path) -> None:
    held = KeyFile(path)
    limited = f"keys:\n- name: batch\n  sha256: {_digest('batch')}\n  requests_per_minute: 100\n"
    # Each beginning but the last is no file of keys, or one with fewer limits.
    for end in range(len(limited) - 30, len(limited)):
        path.write_text(limited[:end])
        assert not await held.look()
    path.write_text(limited)
    assert await look_twice(held)
    (batch,) = held.keys
    assert batch.requests_per_minute == 100


async def test_a_file_that_becomes_readable_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = KeyFile(path)
    write(path, other={})
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_text", _unreadable)
        assert not await look_twice(held)
        assert held.error is not None
    assert await held.look()
    assert held.error is None


def _unreadable(_: Path) -> str:
    raise PermissionError("not yours")


async def test_what_a_key_had_is_remembered_when_the_file_changes(path: Path) -> None:
    write(path, search={"requests_per_minute": 2})
    held = KeyFile(path)
    search = held.keys.find("search")
    assert search is not None
    quota = held.quota(search)
    quota.take_request()
    quota.take_request()
    write(path, other={})
    assert await look_twice(held)
    write(path, search={"requests_per_minute": 2, "weight": 2}, other={})
    assert await look_twice(held)
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

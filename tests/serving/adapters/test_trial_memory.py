"""What is remembered of trials, and that it is believed only where nothing speaks against it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_serving.adapters import trial_memory
from lorafleet_serving.adapters.trial_memory import TrialMemory, trial_conditions
from lorafleet_serving.config import FetcherConfig, PodConfig
from lorafleet_serving.engine.config import DType, EngineConfig

FIRST, SECOND, THIRD = (f"sha256:{number:064x}" for number in (1, 2, 3))


def remembered(folder: Path, conditions: str = "conditions") -> set[str]:
    """Of three digests, those that another start finds to have passed."""
    memory = TrialMemory(folder, conditions)
    return {digest for digest in (FIRST, SECOND, THIRD) if digest in memory}


def test_what_passed_is_known_at_the_next_start(tmp_path: Path) -> None:
    memory = TrialMemory(tmp_path, "conditions")
    for digest in (FIRST, SECOND, SECOND):
        memory.add(digest)
    assert remembered(tmp_path) == {FIRST, SECOND}


def test_what_is_forgotten_stays_so(tmp_path: Path) -> None:
    memory = TrialMemory(tmp_path, "conditions")
    for digest in (FIRST, SECOND):
        memory.add(digest)
    memory.discard(FIRST)
    memory.discard(THIRD)
    assert FIRST not in memory
    assert remembered(tmp_path) == {SECOND}


def test_under_other_conditions_nothing_is_known(tmp_path: Path) -> None:
    TrialMemory(tmp_path, "conditions").add(FIRST)
    assert remembered(tmp_path, "others") == set()
    TrialMemory(tmp_path, "others").add(SECOND)
    assert remembered(tmp_path, "others") == {SECOND}
    assert remembered(tmp_path) == set()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        json.dumps({"conditions": "conditions", "passed": FIRST}).encode(),
        json.dumps({"conditions": "conditions", "passed": {FIRST: 1}}).encode(),
        json.dumps({"conditions": "conditions", "passed": [FIRST, 1]}).encode(),
        json.dumps({"conditions": "conditions", "passed": [FIRST, [SECOND]]}).encode(),
        json.dumps({"conditions": "conditions", "passed": [FIRST, "../up"]}).encode(),
    ],
)
def test_a_damaged_file_is_no_memory_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trials.json").write_bytes(content)
    assert remembered(tmp_path) == set()
    TrialMemory(tmp_path, "conditions").add(THIRD)
    assert remembered(tmp_path) == {THIRD}


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = TrialMemory(tmp_path / "missing", "conditions")
    memory.add(FIRST)
    assert FIRST in memory
    assert "cannot be written" in caplog.text


def test_the_oldest_are_forgotten_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_memory, "_MOST_KEPT", 2)
    memory = TrialMemory(tmp_path, "conditions")
    for digest in (FIRST, SECOND, THIRD):
        memory.add(digest)
    assert remembered(tmp_path) == {SECOND, THIRD}


def test_conditions_are_all_that_a_trial_depends_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PodConfig(EngineConfig(tiny_model), FetcherConfig(tmp_path))
    same = trial_conditions(config, "base")
    assert trial_conditions(replace(config, port=1, poll_interval_s=9.0), "base") == same
    other = [
        trial_conditions(config, "another base"),
        trial_conditions(replace(config, smoke_tokens=8), "base"),
        trial_conditions(replace(config, engine=replace(config.engine, dtype=DType.FP32)), "base"),
    ]
    monkeypatch.setattr(trial_memory, "VERSION", "another")
    other.append(trial_conditions(config, "base"))
    boot = tmp_path / "boot"
    monkeypatch.setattr(trial_memory, "_BOOT", boot)
    # Nothing is alike where no boot can be told from another.
    other += [trial_conditions(config, "base"), trial_conditions(config, "base")]
    for text in ("one", "two"):
        boot.write_text(text)
        other.append(trial_conditions(config, "base"))
    assert trial_conditions(config, "base") == other[-1]
    assert len({same, *other}) == 1 + len(other)

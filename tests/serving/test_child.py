"""Child processes of the front: replaced when they die, and when they only seem to live."""

from __future__ import annotations

import asyncio
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from lorafleet_contract.backoff import Backoff
from lorafleet_serving import child as child_module
from lorafleet_serving.child import ChildProcess

_LIMIT_S = 60.0


def freeze_at_first(pipe: Connection, mark: Path) -> None:
    """Tells its process id; at the first start it then freezes."""
    pipe.send(os.getpid())
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    pipe.recv()


def close_and_linger(pipe: Connection, mark: Path) -> None:
    """At the first start it closes its pipe and does not end."""
    pipe.send(os.getpid())
    if not mark.exists():
        mark.touch()
        pipe.close()
        signal.pause()
    pipe.recv()


def end_at_first(pipe: Connection, mark: Path) -> None:
    """Tells its process id; at the first start it then ends."""
    pipe.send(os.getpid())
    if not mark.exists():
        mark.touch()
        return
    pipe.recv()


async def _second_start(main: Any, mark: Path, *, num_deaths: int = 0) -> tuple[int, int]:
    started: asyncio.Queue[int] = asyncio.Queue()
    exits: list[None] = []
    child = ChildProcess(
        "patient", main, mark, silence_limit_s=2.0, on_event=started.put_nowait, on_exit=lambda: exits.append(None)
    )
    child._quick_deaths = num_deaths
    child.start()
    first = await asyncio.wait_for(started.get(), _LIMIT_S)
    second = await asyncio.wait_for(started.get(), _LIMIT_S)
    assert child.pid == second
    assert len(exits) == 1
    await child.stop("farewell")
    return first, second


def test_a_frozen_child_is_killed_and_replaced(tmp_path: Path) -> None:
    first, second = asyncio.run(_second_start(freeze_at_first, tmp_path / "mark"))
    assert first != second
    assert not Path(f"/proc/{first}").exists()


def test_a_child_that_closed_its_pipe_and_lives_on_is_killed_and_replaced(tmp_path: Path) -> None:
    first, _ = asyncio.run(_second_start(close_and_linger, tmp_path / "mark"))
    assert not Path(f"/proc/{first}").exists()


def test_a_child_that_died_for_hours_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_BACKOFF", Backoff(first_s=1e-9, longest_s=0.01))
    first, second = asyncio.run(_second_start(end_at_first, tmp_path / "mark", num_deaths=5000))
    assert first != second


def test_a_retired_child_is_not_started_again(tmp_path: Path) -> None:
    async def run() -> None:
        started: asyncio.Queue[int] = asyncio.Queue()
        child = ChildProcess(
            "retired",
            freeze_at_first,
            tmp_path,  # Exists, so that it does not freeze.
            silence_limit_s=30.0,
            on_event=started.put_nowait,
            on_exit=lambda: None,
        )
        child.start()
        await asyncio.wait_for(started.get(), _LIMIT_S)
        child.retire()
        await child.stop("farewell")
        assert child.pid is None
        assert started.empty()

    asyncio.run(run())

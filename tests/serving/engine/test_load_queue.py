"""Adapters that are read beside the steps: in order, one at a time, and whatever is wrong with one hurts no other."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest
import torch
from torch import Tensor

from lorafleet_serving.adapters.disk_lock import try_lock
from lorafleet_serving.adapters.dora import Project
from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.adapter_pool import AdapterPool
from lorafleet_serving.engine.load_queue import LoadQueue, Projection, ReadEnded
from lorafleet_serving.engine.messages import AdapterLoaded, AdapterRefused
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, FilesGone, NoRoom
from lorafleet_serving.layers.linear import LoraLinear
from lorafleet_serving.models.registry import LanguageModel, load_model
from tests.serving.random_model import write_adapter, write_llama

_LIMIT_S = 30.0

Ends = list[AdapterLoaded | AdapterRefused]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model and adapters of it."""
    root = tmp_path_factory.mktemp("load-queue")
    write_llama(root / "base")
    found = {"base": root / "base"}
    for seed, name in enumerate(("first", "second", "dora")):
        found[name] = write_adapter(root / "base", root / name, seed, use_dora=name == "dora")
    return found


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LanguageModel:
    return load_model(folders["base"], torch.float32, torch.device("cpu"))


class SlowPool(AdapterPool):
    """Reads an adapter when it is allowed to."""

    def __init__(self, model: LanguageModel, host_bytes: int = 1 << 20) -> None:
        super().__init__(model, torch.float32, torch.device("cpu"), host_bytes=host_bytes, device_bytes=1 << 20)
        self.allowed = threading.Semaphore(0)
        self.began: SimpleQueue[str] = SimpleQueue()
        self.error: Exception | None = None

    def read(self, digest: str, folder: Path, free_bytes: int, project: Project = LoraLinear.project) -> AdapterWeights:
        self.began.put(digest)
        assert self.allowed.acquire(timeout=_LIMIT_S)
        if self.error is not None:
            raise self.error
        return super().read(digest, folder, free_bytes, project)


class Loads:
    """A queue whose ends are waited for as the engine's loop does."""

    def __init__(self, pool: SlowPool, folders: dict[str, Path]) -> None:
        self.pool = pool
        self.ends: Ends = []
        self._folders = folders
        self._read: SimpleQueue[ReadEnded] = SimpleQueue()
        self.queue = LoadQueue(pool, self._read.put, self.ends.append)

    def add(self, *names: str) -> None:
        for name in names:
            self.queue.add(name, self._folders[name])

    def await_began(self, name: str) -> None:
        assert self.pool.began.get(timeout=_LIMIT_S) == name

    def allow(self) -> ReadEnded:
        """Let one be read to its end."""
        self.pool.allowed.release()
        return self.read()

    def read(self) -> ReadEnded:
        """What came of one that was read."""
        return self._read.get(timeout=_LIMIT_S)

    def take(self) -> Ends:
        """Let one be read, take it, and tell what has ended since."""
        self.finish(self.allow())
        return self.drain()

    def finish(self, read: ReadEnded) -> None:
        """Compute what is asked for until the adapter is read."""
        while isinstance(read.result, Projection):
            read = self.go_on(read)
        self.queue.take(read)
        self.pool.check_integrity()

    def go_on(self, read: ReadEnded) -> ReadEnded:
        """Compute what is asked for, and wait for what comes next."""
        self.queue.take(read)
        self.pool.check_integrity()
        return self._read.get(timeout=_LIMIT_S)

    def drain(self) -> Ends:
        found = list(self.ends)
        self.ends.clear()
        return found


@pytest.fixture
def loads(model: LanguageModel, folders: dict[str, Path]) -> Loads:
    return Loads(SlowPool(model), folders)


def test_adapters_come_one_by_one_in_the_order_of_the_asking(loads: Loads) -> None:
    loads.add("first", "second")
    loads.await_began("first")
    assert loads.take() == [AdapterLoaded("first", loads.pool.keep("first") or 0)]
    assert [*loads.pool.host_adapters] == ["first"]
    assert [end.digest for end in loads.take()] == ["second"]
    assert [*loads.pool.host_adapters] == ["first", "second"]
    assert loads.queue.reading_s is None


def test_the_next_is_read_once_the_last_has_its_place(loads: Loads) -> None:
    loads.add("first", "second")
    loads.await_began("first")
    read = loads.allow()
    loads.pool.allowed.release()
    # Nobody has taken the first: how much room the second has is not known.
    with pytest.raises(Empty):
        loads.pool.began.get(timeout=0.2)
    loads.queue.take(read)
    loads.await_began("second")


def test_two_that_fit_alone_and_not_together_are_told_so(model: LanguageModel, folders: dict[str, Path]) -> None:
    size = AdapterPool(model, torch.float32, torch.device("cpu"), host_bytes=1 << 20, device_bytes=1 << 20).load(
        "first", folders["first"]
    )
    loads = Loads(SlowPool(model, host_bytes=size * 3 // 2), folders)
    loads.add("first", "second")
    assert loads.take() == [AdapterLoaded("first", size)]
    (second,) = loads.take()
    assert isinstance(second, AdapterRefused)
    assert isinstance(second.error, NoRoom)
    assert loads.pool.unload("first")
    loads.add("second")
    assert loads.take() == [AdapterLoaded("second", size)]


def test_one_that_is_there_ends_at_once_and_stays(loads: Loads) -> None:
    loads.add("first")
    (loaded,) = loads.take()
    loads.pool.enter("first")
    assert not loads.pool.unload("first")
    loads.add("second", "first")
    assert loads.drain() == [loaded], "it waited behind one that is read"
    loads.pool.leave("first")
    assert loads.pool.serves("first")


def test_one_that_is_asked_for_twice_is_read_once(loads: Loads) -> None:
    loads.add("first", "first", "second")
    assert [end.digest for end in loads.take()] == ["first", "first"]
    assert [end.digest for end in loads.take()] == ["second"]


@pytest.mark.parametrize(
    ("error", "told"), [(AdapterRefusal("odd"), AdapterRefusal), (OSError("the disk is gone"), FetchFailed)]
)
def test_an_adapter_that_cannot_be_read_holds_up_no_other(
    loads: Loads, error: Exception, told: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    loads.add("first", "second")
    loads.pool.error = error
    (refused,) = loads.take()
    assert isinstance(refused, AdapterRefused)
    assert isinstance(refused.error, told)
    assert str(error) in str(refused.error)
    # What nobody foresaw is for the log, with its traceback.
    assert [record.exc_info is not None for record in caplog.records] == [True] * (told is FetchFailed)
    loads.pool.error = None
    assert [end.digest for end in loads.take()] == ["second"]


def test_files_that_leave_while_they_are_read_are_no_fault_of_the_adapter(
    loads: Loads, folders: dict[str, Path], tmp_path: Path
) -> None:
    loads = Loads(loads.pool, {"evicted": shutil.copytree(folders["first"], tmp_path / "evicted")})
    loads.add("evicted")
    loads.await_began("evicted")
    shutil.rmtree(tmp_path / "evicted")
    (refused,) = loads.take()
    assert isinstance(refused, AdapterRefused)
    assert isinstance(refused.error, FilesGone)


def test_files_are_taken_away_by_nobody_while_they_are_read_nor_looked_for_when_they_have_left(
    loads: Loads, folders: dict[str, Path]
) -> None:
    loads.add("first")
    loads.await_began("first")
    assert try_lock(folders["first"]) is None
    assert [type(end) for end in loads.take()] == [AdapterLoaded]
    alone = try_lock(folders["first"])
    assert alone is not None
    alone.close()
    loads = Loads(loads.pool, {"gone": folders["first"].parent / "gone"})
    loads.add("gone")
    loads.finish(loads.read())
    (refused,) = loads.drain()
    assert isinstance(refused, AdapterRefused)
    assert isinstance(refused.error, FilesGone)


def test_what_only_the_base_models_weights_show_is_refused_and_holds_up_no_other(
    loads: Loads, folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folders = folders | {"wild": shutil.copytree(folders["dora"], tmp_path / "wild")}
    weights = folders["wild"] / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "magnitude" in name)
    save_file(tensors | {name: torch.full_like(tensors[name], torch.inf)}, weights)
    loads = Loads(loads.pool, folders)
    loads.add("wild", "dora")
    (refused,) = loads.take()
    assert isinstance(refused, AdapterRefused)
    assert "not finite" in str(refused.error)
    (loaded,) = loads.take()
    assert isinstance(loaded, AdapterLoaded)


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sites whose weights were multiplied with, all in the thread of the steps."""
    found: list[int] = []
    project = LoraLinear.project

    def watched(linear: LoraLinear, rows: Tensor) -> Tensor:
        assert threading.current_thread() is threading.main_thread()
        found.append(linear.site.index)
        return project(linear, rows)

    monkeypatch.setattr(LoraLinear, "project", watched)
    return found


def test_the_steps_wait_for_one_product_of_an_adapter_at_a_time(loads: Loads, multiplied: list[int]) -> None:
    loads.add("dora")
    read = loads.allow()
    for site in range(8):
        assert multiplied == [*range(site)], "a site's modules have one product together"
        read = loads.go_on(read)
    assert not loads.drain()
    loads.queue.take(read)
    assert loads.drain() == [AdapterLoaded("dora", loads.pool.keep("dora") or 0)]
    assert multiplied == [*range(8)]


def test_an_adapter_that_waits_for_the_steps_is_not_read_too_long(loads: Loads) -> None:
    loads.add("dora")
    read = loads.allow()
    taken_at = time.monotonic()
    loads.queue.take(read)
    assert (loads.queue.reading_s or 0.0) <= time.monotonic() - taken_at


def test_an_adapter_is_the_same_whichever_thread_multiplies(loads: Loads, folders: dict[str, Path]) -> None:
    loads.add("dora")
    loads.take()
    assert loads.pool.acquire("dora")
    loads.pool.allowed.release()
    direct = loads.pool.read("dora", folders["dora"], 1 << 20)
    for site, other in zip(loads.pool.weights("dora").sites, direct.sites, strict=True):
        if site is not None and other is not None:
            assert torch.equal(site.dense().a, other.dense().a)
            for part, twin in zip(site.dense().slices, other.dense().slices, strict=True):
                assert part.rescale is not None
                assert twin.rescale is not None
                assert torch.equal(part.rescale.gain, twin.rescale.gain)


def test_an_adapter_of_which_a_part_is_computed_may_be_unloaded_and_asked_for_again(loads: Loads) -> None:
    loads.add("dora", "first")
    read = loads.go_on(loads.allow())
    assert loads.pool.unload("dora"), "what is not there yet need not leave"
    loads.add("dora")
    loads.finish(read)
    assert [end.digest for end in loads.drain()] == ["dora"]
    assert [end.digest for end in loads.take()] == ["first", "dora"]
    assert loads.pool.began.qsize() == 2, "it was read twice"


def test_a_product_that_fails_ends_one_load_and_no_other(
    loads: Loads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(linear: LoraLinear, rows: Tensor) -> Tensor:
        raise MemoryError("none is left")

    loads.add("dora", "first")
    with monkeypatch.context() as patched:
        patched.setattr(LoraLinear, "project", failing)
        (refused,) = loads.take()
    assert isinstance(refused, AdapterRefused)
    assert isinstance(refused.error, FetchFailed)
    assert "none is left" in str(refused.error)
    assert caplog.records
    assert [end.digest for end in loads.take()] == ["first"]
    loads.add("dora")
    assert [type(end) for end in loads.take()] == [AdapterLoaded]


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="elsewhere a thread cannot step back by itself")
def test_the_reader_steps_back_and_the_steps_do_not(model: LanguageModel, folders: dict[str, Path]) -> None:
    num_threads = torch.get_num_threads()
    loads = Loads(SlowPool(model), folders)
    loads.add("first")
    loads.await_began("first")
    readers = [thread for thread in threading.enumerate() if thread.name == "adapter-reader" and thread.native_id]
    assert {os.getpriority(os.PRIO_PROCESS, reader.native_id or 0) for reader in readers} == {10}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0
    assert torch.get_num_threads() == num_threads
    loads.take()

"""Adapters that are read beside the steps: in order, one at a time, and whatever is wrong with one hurts no other."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest
import torch

from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.adapter_pool import AdapterPool
from lorafleet_serving.engine.load_queue import LoadQueue
from lorafleet_serving.engine.messages import AdapterLoaded, AdapterRefused
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed, NoRoom
from lorafleet_serving.models.registry import LanguageModel, load_model
from tests.serving.random_model import write_adapter, write_llama

_LIMIT_S = 30.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model and adapters of it."""
    root = tmp_path_factory.mktemp("load-queue")
    write_llama(root / "base")
    names = ("first", "second", "third")
    return {"base": root / "base"} | {
        name: write_adapter(root / "base", root / name, seed) for seed, name in enumerate(names)
    }


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

    def read(self, digest: str, folder: Path) -> AdapterWeights:
        self.began.put(digest)
        assert self.allowed.acquire(timeout=_LIMIT_S)
        if self.error is not None:
            raise self.error
        return super().read(digest, folder)


class Loads:
    """A queue whose ends are waited for as the engine's loop does."""

    def __init__(self, pool: SlowPool, folders: dict[str, Path]) -> None:
        self.pool = pool
        self._folders = folders
        self.read: SimpleQueue[None] = SimpleQueue()
        self.queue = LoadQueue(pool, on_read=lambda: self.read.put(None))

    def begin(self, *names: str) -> None:
        for name in names:
            self.queue.add(name, self._folders[name])
        assert not self.take(), "nothing was read yet"

    def take(self) -> list[AdapterLoaded | AdapterRefused]:
        return list(self.queue.take_ended())

    def allow(self) -> list[AdapterLoaded | AdapterRefused]:
        """Let one be read, and take what has ended then."""
        self.pool.allowed.release()
        self.read.get(timeout=_LIMIT_S)
        self.pool.check_integrity()
        return self.take()


@pytest.fixture
def loads(model: LanguageModel, folders: dict[str, Path]) -> Loads:
    return Loads(SlowPool(model), folders)


def test_adapters_come_one_by_one_in_the_order_of_the_asking(loads: Loads) -> None:
    loads.begin("first", "second")
    assert loads.pool.began.get(timeout=_LIMIT_S) == "first"
    (first,) = loads.allow()
    assert first == AdapterLoaded("first", loads.pool.keep("first") or 0)
    assert loads.pool.host_adapters == ("first",)
    assert [end.digest for end in loads.allow()] == ["second"]
    assert set(loads.pool.host_adapters) == {"first", "second"}


def test_the_next_is_read_once_the_last_has_its_place(loads: Loads) -> None:
    loads.begin("first", "second")
    assert loads.pool.began.get(timeout=_LIMIT_S) == "first"
    loads.pool.allowed.release(2)
    loads.read.get(timeout=_LIMIT_S)
    # Nobody has taken the first: how much room the second has is not known.
    with pytest.raises(Empty):
        loads.pool.began.get(timeout=0.2)
    assert [end.digest for end in loads.take()] == ["first"]
    assert loads.pool.began.get(timeout=_LIMIT_S) == "second"


def test_two_that_fit_alone_and_not_together_are_told_so(model: LanguageModel, folders: dict[str, Path]) -> None:
    size = AdapterPool(model, torch.float32, torch.device("cpu"), host_bytes=1 << 20, device_bytes=1 << 20).load(
        "first", folders["first"]
    )
    loads = Loads(SlowPool(model, host_bytes=size * 3 // 2), folders)
    loads.begin("first", "second")
    assert loads.allow() == [AdapterLoaded("first", size)]
    (second,) = loads.allow()
    assert isinstance(second, AdapterRefused)
    assert isinstance(second.error, NoRoom)
    assert loads.pool.unload("first")
    loads.begin("second")
    assert loads.allow() == [AdapterLoaded("second", size)]


def test_one_that_is_there_ends_at_once_and_stays(loads: Loads) -> None:
    loads.begin("first")
    (loaded,) = loads.allow()
    loads.pool.enter("first")
    assert not loads.pool.unload("first")
    loads.queue.add("first", Path("nowhere"))
    assert loads.take() == [loaded]
    loads.pool.leave("first")
    assert loads.pool.serves("first")


@pytest.mark.parametrize(
    ("error", "told"), [(AdapterRefusal("odd"), AdapterRefusal), (OSError("the disk is gone"), FetchFailed)]
)
def test_an_adapter_that_cannot_be_read_holds_up_no_other(
    loads: Loads, error: Exception, told: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    loads.begin("first", "second")
    loads.pool.error = error
    (refused,) = loads.allow()
    assert isinstance(refused, AdapterRefused)
    assert isinstance(refused.error, told)
    assert str(error) in str(refused.error)
    # What nobody foresaw is for the log, with its traceback.
    assert [record.exc_info is not None for record in caplog.records] == [True] * (told is FetchFailed)
    loads.pool.error = None
    assert [end.digest for end in loads.allow()] == ["second"]


@pytest.mark.parametrize("given_up", ["first", "second"])
def test_what_nobody_wants_any_more_is_not_taken(loads: Loads, given_up: str) -> None:
    loads.begin("first", "second")
    assert loads.pool.began.get(timeout=_LIMIT_S) == "first"
    loads.queue.discard(given_up)
    found = [*loads.allow(), *(loads.allow() if given_up == "first" else ())]
    assert [end.digest for end in found] == ["second" if given_up == "first" else "first"]
    assert loads.pool.host_adapters == (found[0].digest,)

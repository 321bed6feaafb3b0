from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from lorafleet_serving.heap import freeze_heap


class Node:
    """Part of a cycle, which only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_later_collections_pass_over_what_was_there() -> None:
    kept = [Node() for _ in range(1000)]
    freeze_heap()
    before, made = gc.get_freeze_count(), Node()
    held = {id(item) for item in gc.get_objects()}
    assert before >= len(kept)
    assert not held & {id(node) for node in kept}
    assert id(made) in held


def test_garbage_is_freed_before_and_after() -> None:
    early = weakref.ref(Node())
    freeze_heap()
    late = weakref.ref(Node())
    gc.collect()
    assert (early(), late()) == (None, None)

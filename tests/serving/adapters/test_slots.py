from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lorafleet_serving.adapters.slots import DeviceSlots
from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.kernels.lora_weights import LoraSlice, LoraWeights

CPU = torch.device("cpu")


def make_adapter(digest: str, num_floats: int = 10) -> AdapterWeights:
    b = torch.zeros(num_floats - 1, 1)
    return AdapterWeights(digest, (None, LoraWeights(torch.zeros(1, 1), (LoraSlice(0, num_floats - 1, 0, 1, b),))))


def use(slots: DeviceSlots, adapter: AdapterWeights) -> None:
    assert slots.acquire(adapter)
    slots.release(adapter.digest)
    slots.check_integrity()


def test_size_counts_all_tensors() -> None:
    assert make_adapter("a", 10).num_bytes == 40


def test_least_recently_used_adapter_is_evicted() -> None:
    slots = DeviceSlots(80, CPU)
    for digest in ("a", "b", "a", "c"):
        use(slots, make_adapter(digest))
    assert slots.resident == ("a", "c")


def test_what_was_there_is_counted_and_what_came_and_went() -> None:
    slots = DeviceSlots(80, CPU)
    for digest in ("a", "b", "a", "c"):
        use(slots, make_adapter(digest))
    assert (slots.counts.hits, slots.counts.misses, slots.counts.evictions) == (1, 3, 1)
    assert slots.counts.loads["host"].num_loads == 3
    assert slots.used_bytes == 80
    # One that finds no room has not come.
    assert slots.acquire(make_adapter("c"))
    assert not slots.acquire(make_adapter("large", 20))
    assert (slots.counts.misses, slots.counts.evictions) == (3, 1)


def test_adapter_in_use_is_not_evicted() -> None:
    slots = DeviceSlots(80, CPU)
    assert slots.acquire(make_adapter("a"))
    use(slots, make_adapter("b"))
    use(slots, make_adapter("c"))
    assert slots.resident == ("a", "c")
    assert slots.acquire(make_adapter("c"))
    assert not slots.acquire(make_adapter("d"))
    slots.release("a")
    assert slots.acquire(make_adapter("d"))


def test_pinned_adapter_is_not_evicted_until_unpinned() -> None:
    slots = DeviceSlots(80, CPU)
    use(slots, make_adapter("a"))
    slots.pin("a")
    for digest in ("b", "c"):
        use(slots, make_adapter(digest))
    assert slots.resident == ("a", "c")
    slots.unpin("a")
    use(slots, make_adapter("d"))
    assert "a" not in slots


def test_nothing_is_evicted_for_an_adapter_that_does_not_fit_even_so() -> None:
    slots = DeviceSlots(80, CPU)
    assert slots.acquire(make_adapter("held"))
    use(slots, make_adapter("idle"))
    assert not slots.acquire(make_adapter("large", 20))
    assert slots.resident == ("held", "idle")


def test_several_are_evicted_for_a_large_one() -> None:
    slots = DeviceSlots(80, CPU)
    for digest in ("a", "b"):
        use(slots, make_adapter(digest))
    use(slots, make_adapter("large", 20))
    assert slots.resident == ("large",)


def test_dropped_adapter_gives_its_room_back() -> None:
    slots = DeviceSlots(40, CPU)
    use(slots, make_adapter("a"))
    slots.drop("a")
    slots.drop("unknown")
    assert slots.resident == ()
    use(slots, make_adapter("b"))


def test_weights_are_those_of_the_adapter() -> None:
    slots = DeviceSlots(80, CPU)
    adapter = make_adapter("a")
    assert slots.acquire(adapter)
    assert slots.weights("a").sites[0] is None
    assert slots.weights("a").num_bytes == adapter.num_bytes


def test_release_without_acquire_is_caught() -> None:
    slots = DeviceSlots(80, CPU)
    use(slots, make_adapter("a"))
    with pytest.raises(AssertionError, match="more often"):
        slots.release("a")


@settings(max_examples=150, deadline=None)
@given(
    budget=st.integers(5, 60),
    steps=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["acquire", "release", "pin", "unpin", "drop"]))
    ),
)
def test_budget_is_kept_and_held_adapters_stay(budget: int, steps: list[tuple[str, str]]) -> None:
    sizes = {digest: 3 + 4 * index for index, digest in enumerate("abcdef")}
    slots = DeviceSlots(budget * 4, CPU)
    users = dict.fromkeys(sizes, 0)
    pinned: set[str] = set()
    for digest, action in steps:
        if action == "acquire":
            users[digest] += slots.acquire(make_adapter(digest, sizes[digest]))
        elif action == "release" and users[digest]:
            slots.release(digest)
            users[digest] -= 1
        elif action == "drop" and not users[digest]:
            slots.drop(digest)
            pinned.discard(digest)
        elif action == "pin" and digest in slots:
            slots.pin(digest)
            pinned.add(digest)
        elif action == "unpin" and digest in slots:
            slots.unpin(digest)
            pinned.discard(digest)
        slots.check_integrity()
        held = pinned | {name for name, count in users.items() if count}
        assert held <= set(slots.resident)

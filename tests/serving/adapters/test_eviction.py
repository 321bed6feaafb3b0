"""Which adapter leaves first, by each policy."""

from __future__ import annotations

import pytest

from lorafleet_serving.adapters.eviction import EvictionOrder, EvictionPolicy


def filled(policy: EvictionPolicy, **sizes: int) -> EvictionOrder:
    order = EvictionOrder(policy)
    for digest, num_bytes in sizes.items():
        order.add(digest, num_bytes, cost_s=1.0)
    return order


@pytest.mark.parametrize("policy", list(EvictionPolicy))
def test_of_equals_the_one_that_was_not_used_for_longest_leaves_first(policy: EvictionPolicy) -> None:
    order = filled(policy, a=1, b=1, c=1)
    for digest in "bca":
        order.use(digest)
    assert order.by_value("abc") == ["b", "c", "a"]
    assert order.by_value("ac") == ["c", "a"]


def test_what_is_used_much_outlives_what_was_used_last() -> None:
    recent, frequent = filled(EvictionPolicy.LRU, a=1, b=1), filled(EvictionPolicy.LFU, a=1, b=1)
    for order in (recent, frequent):
        for digest in "aab":
            order.use(digest)
    assert recent.by_value("ab") == ["a", "b"]
    assert frequent.by_value("ab") == ["b", "a"]


@pytest.mark.parametrize("policy", [EvictionPolicy.LFU, EvictionPolicy.GDSF])
def test_what_was_once_used_much_does_not_stay_for_ever(policy: EvictionPolicy) -> None:
    order = filled(policy, once=1)
    for _ in range(50):
        order.use("once")
    order.add("new-0", 1, cost_s=1.0)
    for number in range(1, 100):
        (first, _) = order.by_value(["once", f"new-{number - 1}"])
        if first == "once":
            return
        order.evict(first)
        order.add(f"new-{number}", 1, cost_s=1.0)
    pytest.fail("nothing made it leave")


def test_what_is_small_or_dear_to_bring_back_stays_longer() -> None:
    order = EvictionOrder(EvictionPolicy.GDSF)
    order.add("large", 100, cost_s=1.0)
    order.add("small", 10, cost_s=1.0)
    order.add("dear", 100, cost_s=5.0)
    assert order.by_value(["small", "dear", "large"]) == ["large", "dear", "small"]


@pytest.mark.parametrize("policy", list(EvictionPolicy))
def test_what_comes_back_after_all_was_lost_has_the_value_it_had(policy: EvictionPolicy) -> None:
    order = filled(policy, a=1, b=1, c=1)
    for digest in "cab":
        order.use(digest)
    lost = order.lose_all()
    assert lost == ["b", "a", "c"]
    for digest in lost:
        order.add(digest, 1, cost_s=9.0)
    assert order.by_value("abc") == ["c", "a", "b"]


def test_a_second_loss_before_all_came_back_forgets_none() -> None:
    order = filled(EvictionPolicy.LRU, a=1, b=1, c=1)
    order.lose_all()
    order.add("b", 1, cost_s=1.0)
    assert order.lose_all() == ["c", "b", "a"]
    order.remove("a")
    assert order.lose_all() == ["c", "b"]

"""Which adapters have series of their own, and when labels change hands."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from lorafleet_serving.api.adapter_labels import FIXED, OTHER, AdapterLabels


class Bench:
    """Labels for two, and a clock that stands still until it is told to go on."""

    def __init__(self, most: int = 2) -> None:
        self.now = 0.0
        self.labels = AdapterLabels(most, lambda: self.now)

    def ask(self, name: str, num_times: int = 1) -> str:
        for _ in range(num_times):
            self.labels.note_request(name)
        return self.labels.of(name)

    def scrape(self, after_s: float = 60.0) -> tuple[list[str], list[str]]:
        self.now += after_s
        return self.labels.exchange()


def test_the_first_take_what_is_free() -> None:
    bench = Bench()
    assert [bench.ask(name) for name in "abca"] == ["a", "b", OTHER, "a"]


@pytest.mark.parametrize("label", FIXED)
def test_fixed_labels_take_nobody_s_place(label: str) -> None:
    bench = Bench()
    assert bench.ask(label, 100) == label
    assert [bench.ask(name) for name in "ab"] == ["a", "b"]
    assert bench.scrape() == ([], [])


def test_the_busier_takes_the_quietest_s_place_at_a_scrape() -> None:
    bench = Bench()
    bench.ask("quiet", 4)
    bench.ask("busy", 50)
    assert bench.ask("late", 20) == OTHER
    assert bench.scrape() == (["late"], ["quiet"])
    assert [bench.ask(name) for name in ("late", "quiet", "busy")] == ["late", OTHER, "busy"]
    assert bench.scrape() == ([], [])


def test_labels_do_not_change_hands_among_those_who_are_asked_alike() -> None:
    bench = Bench()
    for _ in range(100):
        for name in "abcdef":
            bench.ask(name, 5)
        bench.ask("f", 4)
        assert bench.scrape() == ([], [])


def test_a_few_requests_take_no_place() -> None:
    bench = Bench()
    for name in "ab":
        bench.ask(name)
    bench.now += 10_000.0
    bench.ask("c", 2)
    assert bench.scrape(0.0) == ([], [])


def test_scrapes_that_follow_close_on_each_other_change_nothing() -> None:
    bench = Bench()
    for name in "ab":
        bench.ask(name)
    bench.ask("busy", 50)
    assert bench.scrape(1.0) == ([], [])
    assert bench.scrape(30.0)[0] == ["busy"]
    bench.ask("next", 50)
    assert bench.scrape(1.0) == ([], [])


def test_what_was_busy_long_ago_gives_way() -> None:
    bench = Bench(1)
    bench.ask("past", 1000)
    bench.scrape(3600.0)
    bench.ask("present", 100)
    assert bench.scrape() == (["present"], ["past"])


@given(
    most=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 40), st.booleans()), max_size=60),
)
def test_no_more_than_so_many_have_labels_and_none_changes_between_scrapes(
    most: int, steps: list[tuple[str, int, bool]]
) -> None:
    bench, own = Bench(most), set[str]()
    for name, num_times, scrapes in steps:
        label = bench.ask(name, num_times)
        assert label == (name if name in own or len(own) < most else OTHER)
        own |= {label} - {OTHER}
        if scrapes:
            gained, lost = bench.scrape()
            assert len(gained) == len(lost)
            assert own.issuperset(lost)
            assert own.isdisjoint(gained)
            own = own.difference(lost).union(gained)
        assert len(own) <= most

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from lorafleet_pipeline.datasets.identity import identity, normalised
from lorafleet_pipeline.datasets.split import split_indices
from lorafleet_pipeline.exceptions import DatasetUnreadable

IDENTITIES = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=80)


@given(identities=IDENTITIES, seed=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_no_identity_crosses_and_no_row_is_lost(identities: list[str], seed: int) -> None:
    if len(set(identities)) < 3:
        with pytest.raises(DatasetUnreadable, match="too few"):
            split_indices(identities, [0.1, 0.2], seed)
        return
    parts = split_indices(identities, [0.1, 0.2], seed)
    assert sorted(index for part in parts for index in part) == list(range(len(identities)))
    assert all(parts)
    keys = [{identities[index] for index in part} for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_shares_are_kept_where_inputs_are_many() -> None:
    parts = split_indices([str(number) for number in range(1000)], [0.05, 0.1], seed=0)
    assert [len(part) for part in parts] == [50, 100, 850]


def test_split_depends_on_seed_and_not_on_the_order_of_rows() -> None:
    keys = [str(number) for number in range(100)]
    first = {keys[index] for index in split_indices(keys, [0.2], seed=1)[0]}
    turned = keys[::-1]
    assert {turned[index] for index in split_indices(turned, [0.2], seed=1)[0]} == first
    assert {keys[index] for index in split_indices(keys, [0.2], seed=2)[0]} != first


def test_one_dominating_input_stays_in_train() -> None:
    keys = ["same"] * 90 + [str(number) for number in range(20)]
    taken, rest = split_indices(keys, [0.1], seed=0)
    assert "same" not in {keys[index] for index in taken}
    assert len(taken) == 11
    assert len(rest) == 99


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is it?", "what  is it"),
        ("It\u2019s \u201cfine\u201d.", 'it\'s "fine"'),
        ("\uff21 full-width letter", "a full-width letter"),
        ("one\n two", "one two"),
    ],
)
def test_inputs_that_differ_in_form_alone_are_one(first: str, second: str) -> None:
    assert identity(first) == identity(second)


@pytest.mark.parametrize(
    ("first", "second"), [("3 + 4", "3 - 4"), ("3.5", "35"), ("f(a)", "f[a]"), ("case 1", "case 2"), ("12:30", "1230")]
)
def test_digits_and_signs_tell_inputs_apart(first: str, second: str) -> None:
    assert normalised(first) != normalised(second)

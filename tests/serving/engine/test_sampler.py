from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

import pytest
import torch
from hypothesis import given, strategies as st

from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from lorafleet_serving.engine.sampler import Sample, Sampler
from lorafleet_serving.engine.sequence import Sequence
from tests.serving.kernels.forms import make_kernels


def make_sequence(tokens: tuple[int, ...] = (1,), /, **sampling: float) -> Sequence:
    return Sequence(GenerationRequest("r", tokens, SamplingParams(**sampling)), arrival=0)  # type: ignore[arg-type]


def sample(logits: torch.Tensor, sequences: list[Sequence], end_token_ids: Collection[int] = ()) -> list[Sample]:
    sampler = Sampler(logits, make_kernels("reference").likeliest(logits), end_token_ids)
    return [sampler.choose(row, sequence) for row, sequence in enumerate(sequences)]


def draw(logits: list[float], num_draws: int, **sampling: float) -> Counter[int | None]:
    sequence = make_sequence(seed=0, **sampling)
    row = torch.tensor([logits])
    return Counter(sample(row, [sequence])[0].token_id for _ in range(num_draws))


def test_temperature_zero_takes_the_most_likely_token() -> None:
    rows = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert [item.token_id for item in sample(rows, [make_sequence(), make_sequence()])] == [1, 0]


def test_tokens_are_drawn_with_their_probabilities() -> None:
    counts = draw([math.log(0.6), math.log(0.3), math.log(0.1)], 3000, temperature=1.0)
    assert [counts[token] / 3000 for token in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_temperature_sharpens() -> None:
    counts = draw([math.log(0.6), math.log(0.4)], 3000, temperature=0.5)
    assert counts[0] / 3000 == pytest.approx(0.36 / 0.52, abs=0.03)


def test_tiny_temperature_is_greedy_and_finite() -> None:
    assert draw([100.0, 101.0, -50.0], 20, temperature=1e-300) == {1: 20}


def test_top_k_leaves_the_k_most_likely() -> None:
    assert set(draw([0.0, 0.1, 0.2, 0.3], 300, temperature=5.0, top_k=2)) == {2, 3}


def test_top_p_leaves_the_smallest_set_that_holds_the_share() -> None:
    logits = [math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]
    assert set(draw(logits, 500, temperature=1.0, top_p=0.7)) == {0, 1}
    assert set(draw(logits, 500, temperature=1.0, top_p=0.5)) == {0}


def test_top_p_counts_what_top_k_leaves() -> None:
    logits = [math.log(0.4), math.log(0.3), math.log(0.2), math.log(0.1)]
    assert set(draw(logits, 500, temperature=1.0, top_k=2, top_p=0.57)) == {0}


def test_top_p_reaches_beyond_the_first_candidates() -> None:
    counts = draw([0.0] * 5000, 400, temperature=1.0, top_p=0.9)
    assert len(counts) > 300


def test_repetition_penalty_lowers_tokens_of_prompt_and_answer() -> None:
    row = torch.tensor([[2.0, 1.9, -1.0]])
    assert sample(row, [make_sequence((0, 0), repetition_penalty=1.5)])[0].token_id == 1
    assert sample(row, [make_sequence((2,), repetition_penalty=1.5)])[0].token_id == 0


def test_min_p_leaves_what_is_likely_enough_beside_the_most_likely() -> None:
    logits = [math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]
    assert set(draw(logits, 500, temperature=1.0, min_p=0.31)) == {0, 1}
    assert set(draw(logits, 500, temperature=1.0, min_p=0.0)) == {0, 1, 2, 3}


def test_typical_p_leaves_the_tokens_of_expected_surprise() -> None:
    # Entropy 1.09 nats; surprises 0.51, 1.61 (three times): nearest are the three, and only then the likeliest.
    logits = [math.log(0.4)] + [math.log(0.2)] * 3
    weights = torch.tensor([0.4, 0.2, 0.2, 0.2])
    entropy = -(weights * weights.log()).sum()
    nearest = (-(weights.log()) - entropy).abs().argsort().tolist()
    assert set(draw(logits, 500, temperature=1.0, typical_p=0.3)) == set(nearest[:2])
    assert set(draw(logits, 800, temperature=1.0, typical_p=1.0)) == {0, 1, 2, 3}


def answered(answer: tuple[int, ...], **sampling: float) -> Sequence:
    """A sequence that has answered some tokens to the prompt (1,)."""
    sequence = make_sequence((1,), **sampling)
    sequence.token_ids += answer
    return sequence


def test_frequency_penalty_counts_and_presence_penalty_does_not() -> None:
    row = torch.tensor([[3.0, 0.0, 2.2]])
    assert sample(row, [answered((0, 0), frequency_penalty=0.5)])[0].token_id == 2
    assert sample(row, [answered((0, 0), presence_penalty=0.5)])[0].token_id == 0
    assert sample(row, [answered((0,), presence_penalty=1.0)])[0].token_id == 2
    assert sample(row, [answered((2, 2), frequency_penalty=-1.0)])[0].token_id == 2


def test_penalties_of_the_answer_leave_the_prompt_alone() -> None:
    row = torch.tensor([[0.0, 1.0, 0.5]])
    assert sample(row, [make_sequence((1, 1), frequency_penalty=2.0, presence_penalty=2.0)])[0].token_id == 1


def test_bias_is_added_and_logprobs_stay_the_models() -> None:
    sequence = make_sequence(logit_bias=((2, 5.0),), num_logprobs=0)  # type: ignore[arg-type]
    item = sample(torch.tensor([[1.0, 0.0, 0.0]]), [sequence])[0]
    assert item.token_id == 2
    assert item.logprob == pytest.approx(-math.log(math.e + 2), abs=1e-5)


def test_an_answer_does_not_end_before_its_least_length() -> None:
    row = torch.tensor([[9.0, 8.0, 1.0]])
    stops = SamplingParams(min_new_tokens=2, stop_token_ids=(1,))
    young, old = (Sequence(GenerationRequest("r", (1,), stops), arrival=0) for _ in range(2))
    old.token_ids += (2, 2)
    assert [item.token_id for item in sample(row.repeat(2, 1), [young, old], end_token_ids={0})] == [2, 0]


def test_random_stream_belongs_to_the_request_and_not_to_the_batch() -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 50)
    alone = make_sequence(seed=7, temperature=1.0)
    first = [sample(rows[step : step + 1], [alone])[0].token_id for step in range(8)]
    crowded = make_sequence(seed=7, temperature=1.0)
    others = [make_sequence(seed=seed, temperature=1.0) for seed in range(3)]
    second = [
        sample(torch.cat((torch.randn(3, 50), rows[step : step + 1])), [*others, crowded])[3] for step in range(8)
    ]
    assert [item.token_id for item in second] == first


def test_logprobs_are_those_of_the_model() -> None:
    row = torch.tensor([[math.log(0.7), math.log(0.2), math.log(0.1)]])
    item = sample(row, [make_sequence(num_logprobs=2, temperature=0.1, seed=0)])[0]
    assert item.token_id == 0
    assert item.logprob == pytest.approx(math.log(0.7), abs=1e-5)
    assert [(entry.token_id, round(entry.logprob, 3)) for entry in item.alternatives] == [
        (0, round(math.log(0.7), 3)),
        (1, round(math.log(0.2), 3)),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_row_that_is_not_finite_gets_no_token_and_others_do(bad: float) -> None:
    rows = torch.tensor([[0.0, bad], [0.0, 1.0]])
    items = sample(rows, [make_sequence(temperature=1.0), make_sequence()])
    assert [item.token_id for item in items] == [None, 1]


extremes = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.just(0.0), st.floats(5e-324, 1e30)),
        "top_k": st.one_of(st.none(), st.integers(1, 1 << 40)),
        "top_p": st.one_of(st.none(), st.just(5e-324), st.floats(5e-324, 1.0)),
        "min_p": st.one_of(st.none(), st.floats(0.0, 1.0, allow_subnormal=False)),
        "typical_p": st.one_of(st.none(), st.just(5e-324), st.floats(5e-324, 1.0)),
        "repetition_penalty": st.floats(0.01, 100.0),
        "frequency_penalty": st.floats(-2.0, 2.0, allow_subnormal=False),
        "presence_penalty": st.floats(-2.0, 2.0, allow_subnormal=False),
        "logit_bias": st.lists(
            st.tuples(st.integers(0, 6), st.floats(-100.0, 100.0, allow_subnormal=False)), max_size=3
        ).map(tuple),
        "seed": st.integers(0, 9),
    }
)


@pytest.mark.parametrize("top_k", [1, 3, None])
@pytest.mark.parametrize("share", ["top_p", "typical_p"])
def test_a_share_that_is_rounded_to_nothing_leaves_the_likeliest(share: str, top_k: int | None) -> None:
    sampling = {share: 5e-324, "top_k": top_k, "temperature": 1.0}
    (item,) = sample(torch.linspace(0.0, 1.0, 50)[None], [make_sequence(**sampling)])  # type: ignore[arg-type]
    assert item.token_id is not None
    if share == "top_p":
        assert item.token_id == 49


@given(
    logits=st.lists(st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False), min_size=7, max_size=7),
    tokens=st.lists(st.integers(0, 6), min_size=1, max_size=5).map(tuple),
    sampling=extremes,
)
def test_whatever_is_accepted_gives_a_token_or_none(
    logits: list[float], tokens: tuple[int, ...], sampling: dict[str, object]
) -> None:
    sequence = Sequence(GenerationRequest("r", tokens, SamplingParams(**sampling)), arrival=0)  # type: ignore[arg-type]
    sequence.token_ids += tokens
    (item,) = sample(torch.tensor([logits]), [sequence])
    assert item.token_id is None or 0 <= item.token_id < 7
    if max(map(abs, logits)) < 1e30:
        assert item.token_id is not None

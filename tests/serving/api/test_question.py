"""What one request may ask of its prompts, in either dialect."""

from __future__ import annotations

import pytest

from lorafleet_serving.api.openai_sampling import nth_sampling
from lorafleet_serving.api.question import Question
from lorafleet_serving.api.schemas import MAX_PROMPT_LOGPROBS
from lorafleet_serving.caller import Caller
from lorafleet_serving.engine.request import SamplingParams
from lorafleet_serving.exceptions import InvalidRequest


def question(num_alternatives: int | None, field: str = "logprobs") -> Question:
    return Question(
        model="",
        caller=Caller(),
        sampling=SamplingParams(num_prompt_logprobs=num_alternatives),
        max_tokens=1,
        max_tokens_field="max_tokens",
        prompt_field="prompt",
        text="x",
        prompt_logprobs_field=field,
    )


def test_a_long_prompt_may_be_scored_with_some_alternatives() -> None:
    question(5).check_prompt_logprobs(8192, 0)
    question(0).check_prompt_logprobs(MAX_PROMPT_LOGPROBS, 0)
    question(None).check_prompt_logprobs(10**6, MAX_PROMPT_LOGPROBS)


@pytest.mark.parametrize(
    ("field", "num_alternatives", "num_prompt", "num_before", "asked"),
    [
        ("logprobs", 20, 8192, 0, 172032),
        ("logprobs", 1, 100, MAX_PROMPT_LOGPROBS, MAX_PROMPT_LOGPROBS + 200),
        ("decoder_input_details", 0, MAX_PROMPT_LOGPROBS + 1, 0, MAX_PROMPT_LOGPROBS + 1),
    ],
)
def test_more_than_a_request_may_have_is_refused(
    field: str, num_alternatives: int, num_prompt: int, num_before: int, asked: int
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        question(num_alternatives, field).check_prompt_logprobs(num_prompt, num_before)
    assert caught.value.field == field
    told = (
        f"{field} asks for {asked} log-probabilities of prompts, a request may have {MAX_PROMPT_LOGPROBS}: send shorter"
    )
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("seed", [None, 3])
def test_only_the_first_answer_has_its_prompt_scored(seed: int | None) -> None:
    first = SamplingParams(seed=seed, num_prompt_logprobs=2)
    assert nth_sampling(first, 0).num_prompt_logprobs == 2
    assert nth_sampling(first, 1).num_prompt_logprobs is None

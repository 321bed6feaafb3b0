"""From the fields of the OpenAI dialect to the engine's sampling settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lorafleet_serving.api.chat_schemas import ChatRequest
from lorafleet_serving.api.schemas import CompletionRequest, SamplingFields
from lorafleet_serving.engine.request import SamplingParams
from lorafleet_serving.exceptions import InvalidRequest

_SEEDS = 2**64


def sampling_of(body: SamplingFields) -> SamplingParams:
    """Settings of a request's first answer; how many tokens it may have is decided later.

    Raises:
        InvalidRequest: a value is out of range, or two fields do not go together.
    """
    least = body.min_tokens or 0
    return SamplingParams(
        max_new_tokens=max(least, 1),
        min_new_tokens=least,
        temperature=body.temperature or 0.0,
        top_k=None if body.top_k in (0, -1) else body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        typical_p=body.typical_p,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=_biases(body.logit_bias or {}),
        seed=None if body.seed is None else body.seed % _SEEDS,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        num_logprobs=_num_logprobs(body),
    )


def nth_sampling(first: SamplingParams, number: int) -> SamplingParams:
    """Settings of another answer to the same prompt: a seeded one has its own stream, none has the prompt scored."""
    if number == 0:
        return first
    seed = None if first.seed is None else (first.seed + number) % _SEEDS
    return replace(first, seed=seed, num_prompt_logprobs=None)


def _num_logprobs(body: SamplingFields) -> int | None:
    if isinstance(body, CompletionRequest):
        return body.logprobs
    assert isinstance(body, ChatRequest)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", field="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _biases(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token_id), bias) for token_id, bias in given.items())

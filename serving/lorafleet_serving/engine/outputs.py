"""What the engine answers for a sequence: a token, an end, what was read of its prompt, or a failure."""

from __future__ import annotations

from collections.abc import Collection

from lorafleet_serving.engine.messages import PromptPart
from lorafleet_serving.engine.prompt_reading import PromptPool, PromptScores
from lorafleet_serving.engine.request import FinishReason, TokenOutput
from lorafleet_serving.engine.sampler import Sample
from lorafleet_serving.engine.scored_prompt import ScoredPrompt
from lorafleet_serving.engine.sequence import Sequence


def finish_reason(sequence: Sequence, token_id: int, end_token_ids: Collection[int]) -> FinishReason | None:
    """Why a sequence ends with its next token, which its grammar has taken; None if it goes on."""
    sampling = sequence.request.sampling
    if token_id in end_token_ids and (not sampling.ignore_eos or sequence.grammar is not None):
        return FinishReason.EOS
    if token_id in sampling.stop_token_ids:
        return FinishReason.STOP
    if sequence.grammar is not None and sequence.grammar.is_over:
        return FinishReason.COMPLETE
    return FinishReason.LENGTH if sequence.num_generated + 1 >= sampling.max_new_tokens else None


def token_output(sequence: Sequence, chosen: Sample, reason: FinishReason | None) -> TokenOutput:
    """The next token of a sequence that does not have it yet; what was asked of its prompt comes with the first."""
    is_first = not sequence.num_generated
    return TokenOutput(
        sequence.request_id,
        # The end token is no part of the answer.
        None if reason in (FinishReason.EOS, FinishReason.STOP) else chosen.token_id,
        reason,
        chosen.logprob,
        chosen.alternatives,
        prompt=_scores(sequence) if is_first else (),
        num_cached=sequence.num_cached if is_first else None,
        queue_s=sequence.queue_s if is_first else None,
    )


def prompt_output(sequence: Sequence) -> TokenOutput:
    """The end of a sequence that generates nothing: the vector or the scores of its prompt, or a failure."""
    if not isinstance(sequence.reading, PromptPool):
        assert not sequence.request.generates, "a sequence that was computed to its end gave no token"
        return TokenOutput(
            sequence.request_id,
            None,
            FinishReason.LENGTH,
            prompt=_scores(sequence),
            num_cached=sequence.num_cached,
            queue_s=sequence.queue_s,
        )
    vector = sequence.reading.vector()
    if vector is None:
        return failure(sequence)
    return TokenOutput(sequence.request_id, None, FinishReason.EMBEDDED, vector=vector, queue_s=sequence.queue_s)


def failure(sequence: Sequence) -> TokenOutput:
    """The end of a sequence whose next values are not finite, or whose grammar lets no token follow."""
    if sequence.grammar is not None and sequence.grammar.error is not None:
        constraint = sequence.request.sampling.constraint
        assert constraint is not None
        return invalid(sequence, f"the answer cannot go on: {sequence.grammar.error}", constraint.field)
    who = f"adapter {sequence.adapter}" if sequence.adapter else "the base model"
    error = f"{who} gave values that are not finite after {sequence.num_generated} tokens"
    return TokenOutput(sequence.request_id, None, FinishReason.ERROR, error=error)


def expiry(sequence: Sequence) -> TokenOutput:
    """The end of a sequence whose deadline has passed."""
    error = f"the request's time was over after {sequence.num_generated} tokens of its answer"
    return TokenOutput(sequence.request_id, None, FinishReason.EXPIRED, error=error)


def invalid(sequence: Sequence, error: str, field: str) -> TokenOutput:
    """The end of a sequence by the fault of a field of its request."""
    return TokenOutput(sequence.request_id, None, FinishReason.ERROR, error=error, error_field=field)


def reads_finite(sequence: Sequence) -> bool:
    """Whether what was read from the prompt so far is finite."""
    return not isinstance(sequence.reading, PromptScores) or sequence.reading.is_finite


def prompt_part(sequence: Sequence) -> PromptPart | None:
    """What was read of a sequence's prompt since it was last asked for; None if that is nothing."""
    scores = _scores(sequence)
    return PromptPart(sequence.request_id, scores) if scores and scores.logprobs else None


def _scores(sequence: Sequence) -> ScoredPrompt | tuple[()]:
    return sequence.reading.hand_over() if isinstance(sequence.reading, PromptScores) else ()

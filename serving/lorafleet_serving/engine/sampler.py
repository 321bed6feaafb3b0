"""Choice of the next token from logits.

Log-probabilities are the model's own, before penalty, temperature and truncation.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch
from torch import Tensor

from lorafleet_serving.engine.request import SamplingParams, TokenLogprob
from lorafleet_serving.engine.sequence import Sequence

_FIRST_CANDIDATES = 1024
"""Candidates that are sorted at first for top-p; nearly always they hold enough of the probability."""


class Sample(NamedTuple):
    """What was chosen for one sequence."""

    token_id: int | None
    """None if the logits are not finite."""
    logprob: float | None = None
    alternatives: tuple[TokenLogprob, ...] = ()


@torch.inference_mode()
def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[Sample]:
    """Choose one token per row.

    Args:
        logits: [num_seqs, vocab_size]
        sequences: the sequence of each row.
    """
    highest, token_ids = logits.max(dim=-1)
    # The two ends tell for the whole row: NaN is taken for both.
    finite, greedy = torch.isfinite(highest - logits.amin(dim=-1)).tolist(), token_ids.tolist()
    return [
        _sample_row(logits[row], sequence, greedy[row]) if finite[row] else Sample(None)
        for row, sequence in enumerate(sequences)
    ]


def _sample_row(logits: Tensor, sequence: Sequence, greedy: int) -> Sample:
    params = sequence.request.sampling
    token_id = greedy
    if params.repetition_penalty != 1.0 or params.temperature > 0.0:
        token_id = _choose(logits, sequence)
    if params.num_logprobs is None:
        return Sample(token_id)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top = torch.topk(logprobs, min(params.num_logprobs, logprobs.shape[0]))
    alternatives = tuple(TokenLogprob(*pair) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Sample(token_id, float(logprobs[token_id]), alternatives)


def _choose(logits: Tensor, sequence: Sequence) -> int:
    params = sequence.request.sampling
    logits = logits.float()
    if params.repetition_penalty != 1.0:
        logits = _penalize(logits, sequence.token_ids, params.repetition_penalty)
    if params.temperature == 0.0:
        return int(logits.argmax())
    # In float64, so that a running sum over a large vocabulary keeps the small ones.
    wide = logits.double()
    probabilities = torch.softmax((wide - wide.max()) / params.temperature, dim=-1)
    weights, token_ids = _truncate(probabilities, params)
    cumulative = weights.cumsum(dim=-1)
    threshold = sequence.random.random() * float(cumulative[-1])
    position = int(torch.searchsorted(cumulative, threshold, right=True))
    position = min(position, weights.shape[0] - 1)
    return position if token_ids is None else int(token_ids[position])


def _penalize(logits: Tensor, token_ids: list[int], penalty: float) -> Tensor:
    seen = torch.tensor(token_ids, device=logits.device)
    values = logits[seen]
    return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))


def _truncate(probabilities: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Weights that are left by top-k and top-p, with their token ids; None means all, in order of id."""
    vocab_size = probabilities.shape[0]
    share = params.top_p or 1.0
    if params.top_k is not None:
        top = torch.topk(probabilities, min(params.top_k, vocab_size))
        share *= float(top.values.sum())
    elif share < 1.0:
        top = torch.topk(probabilities, min(_FIRST_CANDIDATES, vocab_size))
        if float(top.values.sum()) < share:
            top = torch.topk(probabilities, vocab_size)
    else:
        return probabilities, None
    if params.top_p is None or params.top_p == 1.0:
        return top.values, top.indices
    # The smallest set that holds the share: a token is kept while those before it hold less.
    kept = top.values.cumsum(dim=-1) - top.values < share
    return top.values[kept], top.indices[kept]

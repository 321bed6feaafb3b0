"""Choice of the next token from logits.

Log-probabilities are the model's own, before penalty, temperature and truncation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence as Rows
from typing import NamedTuple

import torch
from torch import Tensor

from lorafleet_serving.engine.adjustment import adjust, changes_likeliest
from lorafleet_serving.engine.request import TokenLogprob
from lorafleet_serving.engine.sequence import Sequence
from lorafleet_serving.engine.truncation import truncate


class Sample(NamedTuple):
    """What was chosen for one sequence."""

    token_id: int | None
    """None if the logits are not finite, or no token may follow."""
    logprob: float | None = None
    alternatives: tuple[TokenLogprob, ...] = ()


class Sampler:
    """Chooses tokens from the logits of one step, row by row: a choice may depend on what was chosen before."""

    def __init__(self, logits: Tensor, likeliest: Rows[int | None], end_token_ids: Collection[int] = ()) -> None:
        """Choose by logits that were looked through once.

        Args:
            logits: [num_rows, vocab_size]
            likeliest: of each row the token of the highest logit; None for a row that is not finite.
            end_token_ids: tokens that end an answer, which may not come before its least length.
        """
        self._logits = logits
        self._likeliest = likeliest
        self._end_token_ids = end_token_ids

    @torch.inference_mode()
    def choose(self, row: int, sequence: Sequence) -> Sample:
        """The next token of a sequence, from its row."""
        greedy = self._likeliest[row]
        if greedy is None:
            return Sample(None)
        return _sample_row(self._logits[row], sequence, greedy, self._end_token_ids)


def _sample_row(logits: Tensor, sequence: Sequence, greedy: int, end_token_ids: Collection[int]) -> Sample:
    params = sequence.request.sampling
    token_id = greedy
    if sequence.grammar is not None and not sequence.grammar.look():
        return Sample(None)
    if params.temperature > 0.0 or changes_likeliest(greedy, sequence, end_token_ids):
        adjusted = adjust(logits.float(), sequence, end_token_ids)
        if not bool(torch.isfinite(adjusted.max())):
            return Sample(None)  # Penalties carried it beyond what fp32 holds, or no token is left.
        token_id = _choose(adjusted, sequence)
    if params.num_logprobs is None:
        return Sample(token_id)
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top = torch.topk(logprobs, min(params.num_logprobs, logprobs.shape[0]))
    alternatives = tuple(TokenLogprob(*pair) for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Sample(token_id, float(logprobs[token_id]), alternatives)


def _choose(logits: Tensor, sequence: Sequence) -> int:
    params = sequence.request.sampling
    if params.temperature == 0.0:
        return int(logits.argmax())
    # In float64, so that a running sum over a large vocabulary keeps the small ones.
    wide = logits.double()
    weights, token_ids = truncate(torch.softmax((wide - wide.max()) / params.temperature, dim=-1), params)
    cumulative = weights.cumsum(dim=-1)
    total = float(cumulative[-1])
    # Below the sum even where the product is rounded up to it, so that no token without weight is drawn.
    threshold = min(sequence.random.random() * total, math.nextafter(total, 0.0))
    position = int(torch.searchsorted(cumulative, threshold, right=True))
    return position if token_ids is None else int(token_ids[position])

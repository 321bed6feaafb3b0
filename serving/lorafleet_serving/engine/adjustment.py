"""Changes to a row of logits before its token is chosen: bias, penalties, tokens that may not come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from lorafleet_serving.engine.grammar import Grammar
from lorafleet_serving.engine.request import SamplingParams
from lorafleet_serving.engine.sequence import Sequence


def changes_likeliest(likeliest: int, sequence: Sequence, end_token_ids: Collection[int]) -> bool:
    """Whether `adjust` may leave another token the most likely than the one that it is."""
    params = sequence.request.sampling
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
        or sequence.grammar is not None
        or likeliest in _too_early(sequence, end_token_ids)
    )


def adjust(logits: Tensor, sequence: Sequence, end_token_ids: Collection[int]) -> Tensor:
    """Apply what a sequence's parameters ask for, to fp32 logits [vocab_size].

    Bias first, as OpenAI has it; the repetition penalty (Keskar et al. 2019, CTRL, section 4.1) over prompt and
    answer, frequency and presence penalty (OpenAI's API reference) over the answer; what the answer is bound to and
    ends last, so that nothing brings tokens back.
    """
    params = sequence.request.sampling
    if params.logit_bias:
        token_ids, values = zip(*params.logit_bias, strict=True)
        logits = logits.index_add(0, _ids(token_ids, logits), torch.tensor(values, device=logits.device))
    if params.repetition_penalty != 1.0:
        logits = _penalize_repetition(logits, sequence.token_ids, params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        logits = _penalize_answer(logits, sequence, params)
    if sequence.grammar is not None:
        logits = logits.masked_fill(~_allowed(sequence.grammar, logits), float("-inf"))
    return _postpone_end(logits, sequence, end_token_ids)


def _allowed(grammar: Grammar, logits: Tensor) -> Tensor:
    """Which tokens may come next: bool [vocab_size]."""
    bits = np.unpackbits(np.frombuffer(grammar.mask, np.uint8), count=logits.shape[0], bitorder="little")
    return torch.from_numpy(bits).to(logits.device, torch.bool)


def _postpone_end(logits: Tensor, sequence: Sequence, end_token_ids: Collection[int]) -> Tensor:
    """Take out the tokens that end an answer while they may not; a grammar that can only end does end."""
    params = sequence.request.sampling
    banned = set(_too_early(sequence, end_token_ids))
    if params.ignore_eos and sequence.grammar is not None:
        banned.update(end_token_ids)
    if not banned:
        return logits
    left = logits.index_fill(0, _ids(banned, logits), float("-inf"))
    return logits if sequence.grammar is not None and bool(left.max() == float("-inf")) else left


def _too_early(sequence: Sequence, end_token_ids: Collection[int]) -> Collection[int]:
    """Tokens that would end an answer before its least length."""
    params = sequence.request.sampling
    return {*end_token_ids, *params.stop_token_ids} if sequence.num_generated < params.min_new_tokens else ()


def _penalize_repetition(logits: Tensor, token_ids: list[int], penalty: float) -> Tensor:
    seen = _ids(token_ids, logits)
    values = logits[seen]
    return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))


def _penalize_answer(logits: Tensor, sequence: Sequence, params: SamplingParams) -> Tensor:
    counts = Counter(sequence.token_ids[-sequence.num_generated :] if sequence.num_generated else ())
    if not counts:
        return logits
    penalties = [params.presence_penalty + count * params.frequency_penalty for count in counts.values()]
    return logits.index_add(0, _ids(counts, logits), -torch.tensor(penalties, device=logits.device))


def _ids(token_ids: Collection[int], logits: Tensor) -> Tensor:
    return torch.tensor(tuple(token_ids), dtype=torch.int64, device=logits.device)

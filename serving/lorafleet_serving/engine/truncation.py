"""Which tokens a draw may take: the filters that leave the unlikely ones out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorafleet_serving.engine.request import SamplingParams

_FIRST_CANDIDATES = 1024
"""Candidates that are sorted at first for top-p; nearly always they hold enough of the probability."""


class Candidates(NamedTuple):
    """Tokens that are left."""

    weights: Tensor
    """[num_candidates] their probabilities, which no longer sum to one"""
    token_ids: Tensor | None
    """[num_candidates]; None for all tokens in order of id"""

    def keep(self, mask: Tensor) -> Candidates:
        """Those for which a mask says so."""
        token_ids = torch.nonzero(mask).squeeze(1) if self.token_ids is None else self.token_ids[mask]
        return Candidates(self.weights[mask], token_ids)


def truncate(probabilities: Tensor, params: SamplingParams) -> Candidates:
    """Apply top-k, then top-p to what it leaves, then min-p, then typical-p; one token is always left.

    Args:
        probabilities: float64 [vocab_size]
        params: which filters, and how strict.
    """
    left = _top(probabilities, params)
    if params.min_p:
        left = left.keep(left.weights >= params.min_p * probabilities.max())
    if params.typical_p is not None and params.typical_p < 1.0:
        left = left.keep(_typical(left.weights, params.typical_p))
    return left


def _top(probabilities: Tensor, params: SamplingParams) -> Candidates:
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
        return Candidates(probabilities, None)
    left = Candidates(top.values, top.indices)
    if params.top_p is None or params.top_p == 1.0:
        return left
    # The smallest set that holds the share: a token is kept while those before it hold less, and the first of them
    # however small the share is: it may be rounded to nothing.
    kept = left.weights.cumsum(dim=-1) - left.weights < share
    kept[0] = True
    return left.keep(kept)


def _typical(weights: Tensor, share: float) -> Tensor:
    """Locally typical sampling (Meister et al. 2022): the tokens whose surprise is nearest to the expected one."""
    normalized = weights / weights.sum()
    surprise = -torch.log(normalized.clamp_min(torch.finfo(normalized.dtype).tiny))
    distance = (surprise - (normalized * surprise).sum()).abs()
    order = torch.argsort(distance, stable=True)
    ordered = normalized[order]
    kept = torch.zeros_like(normalized, dtype=torch.bool)
    kept[order[ordered.cumsum(dim=-1) - ordered < share]] = True
    kept[order[0]] = True
    return kept

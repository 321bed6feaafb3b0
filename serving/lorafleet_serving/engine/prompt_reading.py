"""What is read from the rows of a prompt besides the next token: log-probabilities, or one vector.

A row is read once, in order, by whichever step computes it. Rows that are still to be read cannot come from the
prefix cache, which keeps no hidden states; those that were read before a preemption can.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorafleet_serving.engine.request import GenerationRequest, Pooling
from lorafleet_serving.engine.scored_prompt import ScoredPrompt

MAX_LOGIT_ROWS = 64
"""Rows of logits that are made at a time for the tokens of a prompt: 64 of 128,000 tokens take 32 MB in fp32."""

Head = Callable[[Tensor], Tensor]
"""From hidden states [num_rows, hidden_size] to logits [num_rows, vocab_size]."""


class PromptReading:
    """Rows `next_row` to `end_row` of a prompt, which are still to be read."""

    def __init__(self, next_row: int, end_row: int) -> None:
        self.next_row = next_row
        self.end_row = end_row

    @property
    def is_complete(self) -> bool:
        """Whether all rows were read."""
        return self.next_row >= self.end_row

    def rows(self, first: int, last: int) -> range:
        """Those of the rows `first` to `last`, which a step computes, that it has to read."""
        return range(max(first, self.next_row), max(min(last, self.end_row), self.next_row))

    def take(self, hidden: Tensor, head: Head) -> None:
        """Read the next rows from their hidden states behind the final norm, [num_rows, hidden_size]."""
        self._read(hidden, head)
        self.next_row += hidden.shape[0]

    def _read(self, hidden: Tensor, head: Head) -> None:
        raise NotImplementedError  # Each kind of reading has its own.


class PromptScores(PromptReading):
    """Log-probabilities of a prompt's tokens, each given those before it; the first token has none."""

    def __init__(self, token_ids: Sequence[int], num_alternatives: int) -> None:
        super().__init__(0, len(token_ids) - 1)
        self._token_ids = token_ids
        self._num_alternatives = num_alternatives
        self._scores = ScoredPrompt()
        self._num_scored = 1
        self.is_finite = True

    def hand_over(self) -> ScoredPrompt:
        """Those that were read since it was called last; they are not kept."""
        scores, self._scores = self._scores, ScoredPrompt()
        return scores

    def _read(self, hidden: Tensor, head: Head) -> None:
        for start in range(0, hidden.shape[0], MAX_LOGIT_ROWS):
            part = hidden[start : start + MAX_LOGIT_ROWS]
            self._score(torch.log_softmax(head(part).float(), dim=-1))

    def _score(self, logprobs: Tensor) -> None:
        first, self._num_scored = self._num_scored, self._num_scored + logprobs.shape[0]
        given = torch.tensor(self._token_ids[first : first + logprobs.shape[0]], device=logprobs.device)
        scores = logprobs.gather(1, given[:, None]).squeeze(1)
        self.is_finite = self.is_finite and bool(torch.isfinite(scores).all())
        top = torch.topk(logprobs, min(self._num_alternatives, logprobs.shape[1]))
        self._scores.add(_bytes(scores), _bytes(top.indices.to(torch.int32)), _bytes(top.values))


class PromptPool(PromptReading):
    """One vector for a prompt: its last row, or the mean of all."""

    def __init__(self, num_tokens: int, pooling: Pooling) -> None:
        super().__init__(0 if pooling is Pooling.MEAN else num_tokens - 1, num_tokens)
        self._num_rows = self.end_row - self.next_row
        self._sum: Tensor | None = None

    def _read(self, hidden: Tensor, head: Head) -> None:
        total = hidden.sum(dim=0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total

    def vector(self) -> array[float] | None:
        """The vector in fp32, [hidden_size]; None if it is not finite."""
        assert self._sum is not None, "the vector of a prompt is asked for before its rows were read"
        mean = (self._sum / self._num_rows).float()
        return array("f", mean.tolist()) if bool(torch.isfinite(mean).all()) else None


def _bytes(values: Tensor) -> bytes:
    return values.cpu().numpy().tobytes()


def reading_of(request: GenerationRequest) -> PromptReading | None:
    """What a request wants of its prompt's rows; None for the next token alone."""
    if request.pooling is not None:
        return PromptPool(len(request.prompt_token_ids), request.pooling)
    wanted = request.sampling.num_prompt_logprobs
    return None if wanted is None else PromptScores(request.prompt_token_ids, wanted)

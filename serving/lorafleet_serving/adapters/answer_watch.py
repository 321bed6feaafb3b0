"""Follows an answer, and tells what it was like once it is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lorafleet_serving.adapters.evidence import AnswerSeen, is_looping
from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.generation import Piece


class WatchedAnswer(NamedTuple):
    """An answer that is over."""

    seen: AnswerSeen
    token_ids: tuple[int, ...]


class AnswerWatch:
    """Follows one answer, and hands it on once it is over. One that its caller gives up says nothing."""

    def __init__(self, on_end: Callable[[WatchedAnswer], None]) -> None:
        self._on_end = on_end
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._has_text = False
        self._first_s: float | None = None

    def piece(self, piece: Piece, elapsed_s: float) -> None:
        """A piece came, so long after the start."""
        output = piece.output
        self._has_text = self._has_text or bool(piece.text.strip())
        if output.token_id is not None:
            self._first_s = elapsed_s if self._first_s is None else self._first_s
            self._token_ids.append(output.token_id)
            if output.logprob is not None:
                self._logprobs.append(output.logprob)
        if piece.finish_reason is not None:
            self._end(elapsed_s, is_cut=piece.finish_reason is FinishReason.LENGTH)

    def failed(self, reason: str) -> None:
        """The engine gave up."""
        self._on_end(WatchedAnswer(AnswerSeen(failed=reason), tuple(self._token_ids)))

    def _end(self, elapsed_s: float, *, is_cut: bool) -> None:
        first_s, num_later = self._first_s, len(self._token_ids) - 1
        seen = AnswerSeen(
            is_empty=not self._has_text,
            is_cut=is_cut,
            is_looping=is_looping(self._token_ids),
            first_token_s=first_s,
            token_s=(elapsed_s - first_s) / num_later if first_s is not None and num_later > 0 else None,
            mean_logprob=_mean(self._logprobs),
        )
        self._on_end(WatchedAnswer(seen, tuple(self._token_ids)))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""Log-probabilities as the OpenAI dialect writes them; its two routes do not agree on the form.

They are the model's own: before bias, penalties, temperature, filters and what the answer is bound to. The end
token is no part of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lorafleet_serving.engine.request import ScoredToken, TokenLogprob, TokenOutput
from lorafleet_serving.generation import Piece

Json = dict[str, Any]
Decode = Callable[[list[int]], str]


class TextLogprobs:
    """`logprobs` of a completion: four lists side by side."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._offset = 0

    def write(self, pieces: Sequence[Piece]) -> Json:
        """Of the next pieces of one answer."""
        tokens, offsets = _tokens(pieces), []
        for piece in pieces:
            if piece.output.token_id is not None:
                offsets.append(self._offset)
            self._offset += len(piece.token_text)
        return {
            "tokens": [self._decode([token_id]) for token_id, _ in tokens],
            "token_logprobs": [output.logprob for _, output in tokens],
            "top_logprobs": [self._top(output.alternatives) for _, output in tokens],
            "text_offset": offsets,
        }

    def write_prompt(self, token_ids: Sequence[int], scores: Sequence[ScoredToken]) -> Json:
        """Of the prompt that stands before the answer; its first token has nothing before it."""
        texts, offsets = [self._decode([token_id]) for token_id in token_ids], []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [None if score.logprob is None else self._top(score.alternatives) for score in scores],
            "text_offset": offsets,
        }

    def _top(self, alternatives: Sequence[TokenLogprob]) -> Json:
        return {self._decode([item.token_id]): item.logprob for item in alternatives}


class ChatLogprobs:
    """`logprobs` of a message: one object for each token."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def write(self, pieces: Sequence[Piece]) -> Json:
        """Of the next pieces of one answer."""
        return {
            "content": [
                {
                    **self._entry(token_id, output.logprob),
                    "top_logprobs": [self._entry(item.token_id, item.logprob) for item in output.alternatives],
                }
                for token_id, output in _tokens(pieces)
            ],
            "refusal": None,
        }

    def _entry(self, token_id: int, logprob: float | None) -> Json:
        text = self._decode([token_id])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _tokens(pieces: Sequence[Piece]) -> list[tuple[int, TokenOutput]]:
    return [(piece.output.token_id, piece.output) for piece in pieces if piece.output.token_id is not None]

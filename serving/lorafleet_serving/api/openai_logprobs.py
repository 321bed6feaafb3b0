"""Log-probabilities as the OpenAI dialect writes them; its two routes do not agree on the form.

They are the model's own: before bias, penalties, temperature, filters and what the answer is bound to. The end
token is no part of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from lorafleet_serving.detokenizer import token_texts
from lorafleet_serving.engine.request import ScoredToken, TokenLogprob
from lorafleet_serving.generation import Piece
from lorafleet_serving.tokenizer import PodTokenizer

Json = dict[str, Any]
DecodeToken = Callable[[int], str]


class TextLogprobs:
    """`logprobs` of a completion: four lists side by side. A token's text is what it adds to that of the answer."""

    def __init__(self, decode: DecodeToken, offset: int) -> None:
        """`offset` is the length of what stands before the answer."""
        self._decode = decode
        self._offset = offset

    def write(self, pieces: Sequence[Piece]) -> Json:
        """Of the next pieces of one answer."""
        tokens, offsets = _tokens(pieces), []
        for piece in pieces:
            if piece.output.token_id is not None:
                offsets.append(self._offset)
            self._offset += len(piece.token_text)
        return {
            "tokens": [piece.token_text for piece in tokens],
            "token_logprobs": [piece.output.logprob for piece in tokens],
            "top_logprobs": [_top(self._decode, piece.output.alternatives) for piece in tokens],
            "text_offset": offsets,
        }


class ChatLogprobs:
    """`logprobs` of a message: one object for each token. Its text is what it adds to that of the message."""

    def __init__(self, decode: DecodeToken) -> None:
        self._decode = decode

    def write(self, pieces: Sequence[Piece]) -> Json:
        """Of the next pieces of one answer."""
        return {"content": [self._token(piece) for piece in _tokens(pieces)], "refusal": None}

    def _token(self, piece: Piece) -> Json:
        alternatives = piece.output.alternatives
        top = [_entry(self._decode(item.token_id), item.logprob) for item in alternatives]
        return {**_entry(piece.token_text, piece.output.logprob), "top_logprobs": top}


def prompt_logprobs(tokenizer: PodTokenizer, token_ids: Sequence[int], scores: Sequence[ScoredToken]) -> Json:
    """`logprobs` of the prompt that stands before a completion; its first token has nothing before it."""
    texts, decode = token_texts(tokenizer, token_ids), tokenizer.decode_token
    return {
        "tokens": texts,
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [None if score.logprob is None else _top(decode, score.alternatives) for score in scores],
        "text_offset": list(accumulate(map(len, texts), initial=0))[:-1],
    }


def _top(decode: DecodeToken, alternatives: Sequence[TokenLogprob]) -> Json:
    """By their texts: of several that look alike, the likeliest, which is the first."""
    found: Json = {}
    for item in alternatives:
        found.setdefault(decode(item.token_id), item.logprob)
    return found


def _entry(text: str, logprob: float | None) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _tokens(pieces: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.output.token_id is not None]

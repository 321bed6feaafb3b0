"""Log-probabilities as the OpenAI dialect writes them; its two routes do not agree on the form.

They are the model's own: before bias, penalties, temperature, filters and what the answer is bound to. The end
token is no part of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from lorafleet_serving.detokenizer import token_texts
from lorafleet_serving.engine.request import ScoredToken, TokenLogprob
from lorafleet_serving.generation import Piece
from lorafleet_serving.tokenizer import PodTokenizer

Json = dict[str, Any]
DecodeToken = Callable[[int], str]


class TextLogprobs:
    """`logprobs` of a completion: four lists side by side.

    A token's text is what it adds to that of the answer, but for a stop string and a character broken off at the end.
    """

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
            "top_logprobs": [_top(self._decode, _chosen(piece), piece.output.alternatives) for piece in tokens],
            "text_offset": offsets,
        }


class ChatLogprobs:
    """`logprobs` of a message: one object for each token.

    Its text is what it adds to that of the message, but for a stop string and a character broken off at the end.
    """

    def __init__(self, decode: DecodeToken) -> None:
        self._decode = decode

    def write(self, pieces: Sequence[Piece]) -> Json:
        """Of the next pieces of one answer."""
        return {"content": [self._token(piece) for piece in _tokens(pieces)], "refusal": None}

    def _token(self, piece: Piece) -> Json:
        chosen, alternatives = _chosen(piece), piece.output.alternatives
        top = [_entry(_text(self._decode, chosen, item), item.logprob) for item in alternatives]
        return {**_entry(piece.token_text, piece.output.logprob), "top_logprobs": top}


def prompt_logprobs(tokenizer: PodTokenizer, token_ids: Sequence[int], scores: Sequence[ScoredToken]) -> Json:
    """`logprobs` of the prompt that stands before a completion; its first token has nothing before it."""
    texts, decode = token_texts(tokenizer, token_ids), tokenizer.decode_token
    chosen = map(_Chosen, token_ids, texts)
    return {
        "tokens": texts,
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [
            None if score.logprob is None else _top(decode, token, score.alternatives)
            for token, score in zip(chosen, scores, strict=True)
        ],
        "text_offset": list(accumulate(map(len, texts), initial=0))[:-1],
    }


class _Chosen(NamedTuple):
    """The token that the model went on with, and what it adds to the text."""

    token_id: int
    text: str


def _top(decode: DecodeToken, chosen: _Chosen, alternatives: Sequence[TokenLogprob]) -> Json:
    """By their texts: of several that look alike the chosen one, or else the likeliest, which is the first."""
    found: Json = {}
    for item in alternatives:
        text = _text(decode, chosen, item)
        if item.token_id == chosen.token_id or text not in found:
            found[text] = item.logprob
    return found


def _text(decode: DecodeToken, chosen: _Chosen, item: TokenLogprob) -> str:
    """Of an alternative: the chosen one is written as it is where it stands, others as inside a text."""
    return chosen.text if item.token_id == chosen.token_id else decode(item.token_id)


def _chosen(piece: Piece) -> _Chosen:
    assert piece.output.token_id is not None, "a piece without a token has no log-probability"
    return _Chosen(piece.output.token_id, piece.token_text)


def _entry(text: str, logprob: float | None) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _tokens(pieces: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.output.token_id is not None]

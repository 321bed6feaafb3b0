"""Log-probabilities of the OpenAI dialect: a token is found among its alternatives by its own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorafleet_serving.api.openai_logprobs import ChatLogprobs, TextLogprobs, prompt_logprobs
from lorafleet_serving.engine.request import ScoredToken, TokenLogprob, TokenOutput
from lorafleet_serving.generation import Piece
from lorafleet_serving.tokenizer import PodTokenizer
from tests.serving.tiny_model import make_blank_tokenizer

TEXTS = {1: "\ufffd", 2: "\ufffd", 3: "\ufffd", 4: "a", 5: "€"}
"""Of tokens that stand alone."""


def piece(token_id: int, text: str, *alternatives: tuple[int, float]) -> Piece:
    found = tuple(TokenLogprob(*pair) for pair in alternatives)
    own = dict(alternatives).get(token_id, -9.0)
    return Piece(text, TokenOutput("x", token_id, logprob=own, alternatives=found), text)


EURO = [piece(1, "", (1, -0.5), (2, -1.0), (3, -2.0)), piece(2, "€", (4, -0.25), (2, -0.5), (1, -1.0))]
"""A character of two tokens."""


def test_a_token_of_a_completion_is_a_key_of_its_alternatives() -> None:
    written = TextLogprobs(TEXTS.__getitem__, 0).write(EURO)
    assert written["tokens"] == ["", "€"]
    assert written["top_logprobs"] == [{"": -0.5, "\ufffd": -1.0}, {"a": -0.25, "€": -0.5, "\ufffd": -1.0}]


@pytest.mark.parametrize("alternatives", [((5, -0.5), (2, -1.0)), ((2, -1.0), (5, -2.0))])
def test_another_that_looks_alike_does_not_take_the_place_of_the_token(alternatives: Any) -> None:
    (found,) = TextLogprobs(TEXTS.__getitem__, 0).write([piece(2, "€", *alternatives)])["top_logprobs"]
    assert found == {"€": -1.0}


def test_a_token_of_a_message_is_among_its_alternatives() -> None:
    first, second = ChatLogprobs(TEXTS.__getitem__).write(EURO)["content"]
    assert [entry["token"] for entry in first["top_logprobs"]] == ["", "\ufffd", "\ufffd"]
    assert [entry["token"] for entry in second["top_logprobs"]] == ["a", "€", "\ufffd"]
    for entry in (first, second):
        assert {name: entry[name] for name in ("token", "logprob", "bytes")} in entry["top_logprobs"]


def test_a_token_of_a_prompt_is_a_key_of_its_alternatives(tmp_path: Path) -> None:
    make_blank_tokenizer().save_pretrained(tmp_path)
    tokenizer = PodTokenizer(tmp_path)
    token_ids = tokenizer.encode("the capital of France")
    other = TokenLogprob(tokenizer.encode("is")[-1], -3.0)
    scores = [ScoredToken(None), *(ScoredToken(-1.0, (TokenLogprob(item, -1.0), other)) for item in token_ids[1:])]
    written = prompt_logprobs(tokenizer, token_ids, scores)
    assert written["top_logprobs"][0] is None
    assert written["tokens"][1] in {"t", "th", "the"}
    for token, top in zip(written["tokens"][1:], written["top_logprobs"][1:], strict=True):
        assert top[token] == -1.0
        assert len(top) == 2

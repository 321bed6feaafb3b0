"""Text while tokens arrive: whatever the pieces, they add up to the whole, and stop strings never show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import example, given, strategies as st

from lorafleet_serving.detokenizer import Detokenizer, StopScreen


class ByteTokenizer:
    """Each token is one byte: the hardest case, in which most tokens are no whole character."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        return False


@cache
def _bytes() -> ByteTokenizer:
    return ByteTokenizer()


@given(st.text(max_size=40))
def test_pieces_add_up_and_show_no_half_character(text: str) -> None:
    detokenizer = Detokenizer(_bytes())
    pieces = [detokenizer.add(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_an_unfinished_character_shows_only_at_the_end() -> None:
    detokenizer = Detokenizer(_bytes())
    assert [detokenizer.add(byte) for byte in "aß".encode()[:2]] == ["a", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_cuts_the_text_wherever_the_pieces_end(pieces: list[str], stop: list[str]) -> None:
    screen = StopScreen(stop)
    shown, text = "", "".join(pieces)
    for piece in pieces:
        part, stopped = screen.add(piece)
        shown += part
        if stopped:
            break
    else:
        shown += screen.flush()
    assert not any(item in shown for item in stop)
    assert text.startswith(shown)
    if not any(item in text for item in stop):
        assert shown == text


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (["\n\n"], ["one\n", "\ntwo"], "one"),
        (["END"], ["xE", "N", "E", "ND"], "xEN"),
        (["abc", "b"], ["a", "b", "c"], "a"),
        ([], ["any", "thing"], "anything"),
    ],
)
def test_stop_strings_across_pieces(stop: list[str], pieces: list[str], shown: str) -> None:
    screen = StopScreen(stop)
    text = ""
    for piece in pieces:
        part, stopped = screen.add(piece)
        text += part
        if stopped:
            break
    assert text == shown


class CountingTokenizer(ByteTokenizer):
    """Counts the tokens that it decodes; 255 is a special one."""

    def __init__(self) -> None:
        self.num_decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.num_decoded += len(token_ids)
        return super().decode([item for item in token_ids if not self.is_special(item)])

    def is_special(self, token_id: int) -> bool:
        return token_id == 255


@example([255, 255, 255, 255, 0xC3, 255, 255, 255, 255, 0xA9])
@given(st.lists(st.one_of(st.integers(0, 254), st.sampled_from([0x80, 0xC3, 0xE2, 0xF0]), st.just(255)), max_size=60))
def test_broken_characters_and_special_tokens_add_up_as_well(token_ids: list[int]) -> None:
    tokenizer = CountingTokenizer()
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(token_id) for token_id in token_ids]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(token_ids)


@pytest.mark.parametrize("token_ids", [[0x80] * 4000, [255] * 4000, [0xE2, 0x82] * 2000])
def test_the_work_for_a_token_does_not_grow_with_the_text(token_ids: list[int]) -> None:
    tokenizer = CountingTokenizer()
    detokenizer = Detokenizer(tokenizer)
    shown = "".join([detokenizer.add(token_id) for token_id in token_ids])
    assert tokenizer.num_decoded < 60 * len(token_ids)
    assert shown + detokenizer.flush() == tokenizer.decode(token_ids)

"""Text while tokens arrive: whatever the pieces, they add up to the whole, and stop strings never show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, strategies as st

from lorafleet_serving.detokenizer import Detokenizer, StopScreen


class ByteTokenizer:
    """Each token is one byte: the hardest case, in which most tokens are no whole character."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


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

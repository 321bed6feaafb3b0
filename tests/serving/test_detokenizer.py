"""Text while tokens arrive: whatever the pieces, they add up to the whole, and stop strings never show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import example, given, strategies as st

from lorafleet_serving.detokenizer import Detokenizer, StopScreen, TextDecoder, token_texts
from tests.serving.tiny_model import make_blank_tokenizer


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


class BlankTokenizer:
    """Takes the first blank of whatever it decodes, and reads bytes side by side as a whole."""

    def __init__(self) -> None:
        self._text = make_blank_tokenizer().backend_tokenizer

    def named(self, text: str) -> list[int]:
        """Tokens that stand in a text by their names."""
        return [self._text.token_to_id(name) for name in re.findall(r"<[^>]+>|▁\w*|\w+", text)]

    def encode(self, text: str) -> list[int]:
        return list(self._text.encode(text).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._text.decode(list(token_ids), skip_special_tokens=True))

    def is_special(self, token_id: int) -> bool:
        return token_id < 3


@pytest.fixture(scope="module")
def blanks() -> BlankTokenizer:
    return BlankTokenizer()


def _answered(tokenizer: TextDecoder, prompt: Sequence[int], answer: Sequence[int]) -> str:
    detokenizer = Detokenizer(tokenizer, prompt)
    pieces = [detokenizer.add(token_id) for token_id in answer]
    return "".join(pieces) + detokenizer.flush()


TEXTS = st.text(
    st.one_of(st.sampled_from(" aé€日🙂"), st.characters(codec="utf-8", exclude_characters="\ufffd")), max_size=20
)


@given(TEXTS, st.integers(0, 60))
def test_an_answer_goes_on_where_the_prompt_ends_even_inside_a_character(text: str, num_prompt: int) -> None:
    prompt, answer = text.encode()[:num_prompt], text.encode()[num_prompt:]
    shown = prompt.decode(errors="ignore")
    assert _answered(_bytes(), prompt, answer) == (text[len(shown) :] if answer else "")


class PairTokenizer(ByteTokenizer):
    """Each token is two bytes: many hold the end of a character, or one and the start of the next."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return super().decode(b"".join(token_id.to_bytes(2, "big") for token_id in token_ids))


@example("a" + "€é" * 6, 11)
@example("0\x80\x80\U00010000a", 4)
@given(TEXTS, st.integers(0, 30))
def test_tokens_that_cross_characters_are_gone_on_with(text: str, num_prompt: int) -> None:
    text += "a" * (len(text.encode()) % 2)
    pairs = iter(text.encode())
    token_ids = [first << 8 | second for first, second in zip(pairs, pairs, strict=True)]
    shown = text.encode()[: 2 * num_prompt].decode(errors="ignore")
    answer = _answered(PairTokenizer(), token_ids[:num_prompt], token_ids[num_prompt:])
    assert answer == text[len(shown) :]


@example("the capital", 4)
@example("日本", 5)
@example("a 日本日本日本日本", 12)
@given(TEXTS, st.integers(0, 60))
def test_an_answer_keeps_its_first_blank(blanks: BlankTokenizer, text: str, num_prompt: int) -> None:
    token_ids = blanks.encode(text)
    prompt, answer = token_ids[:num_prompt], token_ids[num_prompt:]
    num_whole = next(num for num in range(len(prompt), -1, -1) if "\ufffd" not in blanks.decode(prompt[:num]))
    shown = blanks.decode(prompt[:num_whole])
    assert _answered(blanks, prompt, answer) == (text[len(shown) :] if answer else "")


@pytest.mark.parametrize(
    ("prompt", "answer", "shown"),
    [
        ("is<0xE2>", "x", "x"),
        ("is<0xE2>", "<0x82>x", "\ufffdx"),
        ("is<0xE2><0x82>", "<0xAC>x", "€x"),
        ("is<0xE2><0x82>", "", ""),
        ("is<0xE2><0x82><0xAC>", "<0xE2>x", "\ufffdx"),
        ("is<0xE2><0x82><0xAC>", "<0xE2><0x82><0xAC>", "€"),
        ("is</s>", "</s>▁of", " of"),
        ("▁", "▁of", " of"),
        ("</s>", "▁of", "of"),
        ("", "▁of", "of"),
    ],
)
def test_what_the_prompt_said_is_not_said_again(blanks: BlankTokenizer, prompt: str, answer: str, shown: str) -> None:
    assert _answered(blanks, blanks.named(prompt), blanks.named(answer)) == shown


def test_the_texts_of_tokens_are_the_whole_text(blanks: BlankTokenizer) -> None:
    token_ids = blanks.encode("the capital €9")
    texts = token_texts(blanks, token_ids)
    assert "".join(texts) == "the capital €9"
    assert texts[-4:] == ["", "", "€", "9"]
    assert "".join(token_texts(blanks, token_ids[:-2])) == blanks.decode(token_ids[:-2])
    assert token_texts(blanks, []) == []


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


@pytest.mark.parametrize("prompt", [[0x80] * 4000, [255] * 4000, [0x61] * 4000])
def test_the_work_for_a_prompt_does_not_grow_with_it(prompt: list[int]) -> None:
    tokenizer = CountingTokenizer()
    Detokenizer(tokenizer, prompt)
    assert tokenizer.num_decoded < 200


@pytest.mark.parametrize("token_ids", [[0x80] * 4000, [255] * 4000, [0xE2, 0x82] * 2000])
def test_the_work_for_a_token_does_not_grow_with_the_text(token_ids: list[int]) -> None:
    tokenizer = CountingTokenizer()
    detokenizer = Detokenizer(tokenizer)
    shown = "".join([detokenizer.add(token_id) for token_id in token_ids])
    assert tokenizer.num_decoded < 60 * len(token_ids)
    assert shown + detokenizer.flush() == tokenizer.decode(token_ids)

"""Tokens to text while they arrive: no half characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile
from typing import NamedTuple, Protocol

_UNFINISHED = "\ufffd"
"""What a decoder writes for the first bytes of a character whose last bytes are still to come."""
_LONGEST_CHARACTER = 4
"""Tokens of one character at most: one for each byte of its UTF-8."""
_MOST_CONTEXT = 2 * _LONGEST_CHARACTER
"""Tokens of a prompt that are looked at for those that settle how an answer begins."""


class TextDecoder(Protocol):
    """Turns tokens into text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether a token stands for no text."""
        ...


class Detokenizer:
    """Turns a growing token sequence into text, piece by piece.

    Decodes a short window only: from the start of the piece before, whose text settles how the next
    begins (some tokenizers drop the space of a first word); at first that is the end of the prompt, whose own text is
    no part of any piece. The window stays short even where a model writes bytes that are no characters: what is older
    than a character is long is settled as it stands.
    """

    def __init__(self, tokenizer: TextDecoder, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._settled, self._pending = _context(tokenizer, prompt)
        self._given = self._text(self._pending)
        """How the prompt's text ends, from the token on that begins a character which it breaks off."""

    def add(self, token_id: int) -> str:
        """Text that is certain with this token; empty while a character is unfinished."""
        if self._tokenizer.is_special(token_id):
            return ""
        self._pending.append(token_id)
        text = self._text(self._pending)
        if text and not text.endswith(_UNFINISHED):
            return self._settle(text, len(self._pending))
        return self._settle_start(text) if len(self._pending) > 2 * _LONGEST_CHARACTER else ""

    def flush(self) -> str:
        """What is left at the end, unfinished or not."""
        return self._settle(self._text(self._pending), len(self._pending))

    def _settle_start(self, text: str) -> str:
        """Text of the older of the pending tokens, if no token to come can change it."""
        start = self._pending[:-_LONGEST_CHARACTER]
        certain = self._text(start)
        # A character may cross the border: at the next token it does no longer.
        return self._settle(certain, len(start)) if text.startswith(certain) else ""

    def _settle(self, text: str, num_tokens: int) -> str:
        """Be done with the first pending tokens; what of their text the prompt has not given."""
        given = takewhile(lambda pair: pair[0] == pair[1], zip(text, self._given, strict=False))
        num_given = len(list(given))
        self._settled, self._pending = self._pending[:num_tokens], self._pending[num_tokens:]
        self._given = ""
        return text[num_given:]

    def _text(self, token_ids: list[int]) -> str:
        """Text of tokens behind the settled ones."""
        known = self._tokenizer.decode(self._settled)
        text = self._tokenizer.decode(self._settled + token_ids)
        # Bytes side by side are read as a whole: where the last of them are no character yet, none of them is.
        return text[len(known) :] if text.startswith(known) else self._tokenizer.decode(token_ids)


def token_texts(tokenizer: TextDecoder, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to their text: joined, these are the whole of it."""
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.add(token_id) for token_id in token_ids]
    if texts:
        texts[-1] += detokenizer.flush()
    return texts


def _context(tokenizer: TextDecoder, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
    """The last tokens of a prompt: as few as have a text of their own, and those of a character that it breaks off."""
    plain = (token_id for token_id in reversed(prompt) if not tokenizer.is_special(token_id))
    last = list(islice(plain, _MOST_CONTEXT))[::-1]
    for end in range(len(last), max(len(last) - _LONGEST_CHARACTER, -1), -1):
        for start in range(max(end - 1, 0), -1, -1):
            text = tokenizer.decode(last[start:end])
            if _UNFINISHED not in (text[:1], text[-1:]) and (text or start == 0):
                return last[start:end], last[end:]
    # Nowhere does a token end where a character ends.
    return last[:-_LONGEST_CHARACTER], last[-_LONGEST_CHARACTER:]


class Screened(NamedTuple):
    """Text that may go out, and whether a stop string was found behind it."""

    text: str
    stopped: bool


class StopScreen:
    """Holds back the end of a text while it may be the beginning of a stop string."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [item for item in stop if item]
        self._held = ""

    def add(self, text: str) -> Screened:
        """Take more text."""
        text = self._held + text
        found = [place for item in self._stop if (place := text.find(item)) >= 0]
        if found:
            self._held = ""
            return Screened(text[: min(found)], stopped=True)
        cut = len(text) - self._num_doubtful(text)
        self._held = text[cut:]
        return Screened(text[:cut], stopped=False)

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _num_doubtful(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(item) - 1 for item in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(item.startswith(text[-length:]) for item in self._stop):
                return length
        return 0

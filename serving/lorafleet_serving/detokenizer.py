"""Tokens to text while they arrive: no half characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

_UNFINISHED = "\ufffd"
"""What a decoder writes for the first bytes of a character whose last bytes are still to come."""
_LONGEST_CHARACTER = 4
"""Tokens of one character at most: one for each byte of its UTF-8."""


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
    begins (some tokenizers drop the space of a first word). The window stays short even where a model writes bytes
    that are no characters: what is older than a character is long is settled as it stands.
    """

    def __init__(self, tokenizer: TextDecoder) -> None:
        self._tokenizer = tokenizer
        self._settled: list[int] = []
        self._pending: list[int] = []

    def add(self, token_id: int) -> str:
        """Text that is certain with this token; empty while a character is unfinished."""
        if self._tokenizer.is_special(token_id):
            return ""
        self._pending.append(token_id)
        text = self._new_text()
        if text and not text.endswith(_UNFINISHED):
            self._settled, self._pending = self._pending, []
            return text
        return self._settle_start(text) if len(self._pending) > 2 * _LONGEST_CHARACTER else ""

    def flush(self) -> str:
        """What is left at the end, unfinished or not."""
        text = self._new_text()
        self._settled, self._pending = self._pending, []
        return text

    def _settle_start(self, text: str) -> str:
        """Text of the older of the pending tokens, if no token to come can change it."""
        start, rest = self._pending[:-_LONGEST_CHARACTER], self._pending[-_LONGEST_CHARACTER:]
        whole, self._pending = self._pending, start
        certain = self._new_text()
        if not text.startswith(certain):
            self._pending = whole  # A character crosses the border: at the next token it does no longer.
            return ""
        self._settled, self._pending = start, rest
        return certain

    def _new_text(self) -> str:
        known = self._tokenizer.decode(self._settled)
        return self._tokenizer.decode(self._settled + self._pending)[len(known) :]


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

"""Text to tokens and back, in the front process, with the base model's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from lorafleet_serving.chat_template import ChatMessage, ChatTemplate, Tool
from lorafleet_serving.exceptions import InvalidRequest, PromptTooLong, UnsupportedModel

_NUM_REMEMBERED = 1 << 15
"""Tokens whose text is remembered: alternatives are the same few ones most of the time."""


class TextToken(NamedTuple):
    """One token of a text, with its place in it."""

    id: int
    text: str
    start: int
    stop: int


class PodTokenizer:
    """The base model's tokenizer and chat template. Safe to share between threads."""

    def __init__(self, folder: Path) -> None:
        # The heaviest import of the front; here it does not delay the reading of settings.
        from transformers import AutoTokenizer

        try:
            self._chat = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UnsupportedModel(f"model folder {folder} has no tokenizer that can be loaded: {error}") from error
        # The Rust tokenizer itself: the wrapper around it changes state in each call, which threads cannot share.
        self._text = self._chat.backend_tokenizer
        self._text.no_padding()
        self._text.no_truncation()
        self.eos_token_id: int = self._chat.eos_token_id if self._chat.eos_token_id is not None else 0
        vocabulary: dict[str, int] = self._text.get_vocab()
        self._longest_token = max(len(token) for token in vocabulary)
        self._num_ids = max(vocabulary.values()) + 1
        added = self._text.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._anchor = self._text.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor_text = self.decode(self._anchor)
        self.decode_token: Callable[[int], str] = lru_cache(_NUM_REMEMBERED)(self._decode_token)
        """Text of one token as it stands inside a text, without that of a special one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a text."""
        return tuple(self._text.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_rendered(
        self, text: str, *, chat: bool, template: str | None = None, field: str = "variables"
    ) -> tuple[int, ...]:
        """Tokens of a rendered prompt template; with `chat` it is the user's turn of the chat template."""
        if not chat:
            return self.encode(text)
        return self.encode_chat([{"role": "user", "content": text}], template=template, field=field)

    def chat_template(self, template: str | None = None, *, with_tools: bool = False) -> ChatTemplate:
        """An adapter's own chat template, or the base model's: the one for tools where it has several.

        Raises:
            InvalidRequest: the base model has none.
        """
        if template is None and self._chat.chat_template is None:
            raise InvalidRequest("the base model has no chat template: use /v1/completions", field="messages")
        tools: list[Tool] | None = [{}] if with_tools else None
        return ChatTemplate(self._chat, self._chat.get_chat_template(template, tools), is_trusted=template is None)

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        max_tokens: int | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        template: str | None = None,
        field: str = "messages",
    ) -> tuple[int, ...]:
        """Tokens of a conversation, up to where the assistant's answer starts.

        Raises:
            InvalidRequest: the base model has no chat template, or it refuses these messages.
            PromptTooLong: they must have more than `max_tokens` tokens.
        """
        text = self.chat_template(template, with_tools=bool(tools)).render(messages, tools, field)
        if max_tokens is not None:
            self.check_text(text, max_tokens, field)
        # The template writes its own special tokens.
        return self.encode(text, add_special_tokens=False)

    def split(self, text: str, *, add_special_tokens: bool) -> list[TextToken]:
        """Tokens of a text with their places."""
        found = self._text.encode(text, add_special_tokens=add_special_tokens)
        return [
            TextToken(token_id, text[start:stop] or token, start, stop)
            for token_id, token, (start, stop) in zip(found.ids, found.tokens, found.offsets, strict=True)
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, without special ones."""
        return str(self._text.decode(list(token_ids), skip_special_tokens=True))

    def _decode_token(self, token_id: int) -> str:
        # Behind another token: at the start of a text some decoders take its blank away.
        text = self.decode([*self._anchor, token_id])
        # Bytes side by side are read as a whole, so that one which is no character may spoil an anchor of bytes.
        return text[len(self._anchor_text) :] if text.startswith(self._anchor_text) else self.decode([token_id])

    def to_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return str(self._text.to_str())

    def is_special(self, token_id: int) -> bool:
        """Whether a token stands for no text."""
        return token_id in self._special_ids

    def check_ids(self, token_ids: Iterable[int], field: str = "prompt") -> None:
        """Turn away tokens that are none.

        Raises:
            InvalidRequest: a number is not the id of a token.
        """
        wrong = next((item for item in token_ids if not 0 <= item < self._num_ids), None)
        if wrong is not None:
            raise InvalidRequest(f"token id {wrong} is not between 0 and {self._num_ids - 1}", field=field)

    def check_text(self, text: str, max_tokens: int, field: str = "prompt") -> None:
        """Turn away a text that is none or must be too long, without the work of tokenizing it.

        Raises:
            InvalidRequest: it holds half of a surrogate pair, as JSON may, and no tokenizer.
            PromptTooLong: it has more characters than that many of the longest tokens.
        """
        limit = max_tokens * self._longest_token
        if len(text) > limit:
            told = f"the prompt has {len(text)} characters, more than {max_tokens} tokens can hold: shorten it"
            raise PromptTooLong(told, field=field)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is not valid Unicode: {error}", field=field) from error

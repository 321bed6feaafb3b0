"""From a request that was understood to its answer: encode, resolve, begin, count.

Both dialects ask through this one; they differ only in how they read requests and write answers.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Request

from lorafleet_contract.prompt import PromptBlock
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.api.metrics import PodMetrics
from lorafleet_serving.engine.request import FinishReason, SamplingParams
from lorafleet_serving.exceptions import InvalidRequest, PromptTooLong
from lorafleet_serving.generation import Generation, Piece
from lorafleet_serving.pod import Pod

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 500
_INLINE_CHARACTERS = 4000
"""Shorter texts are tokenized on the event loop: a thread would cost more than the work."""

Result = TypeVar("Result")

ADAPTER_HEADER = "x-lorafleet-adapter"
DIGEST_HEADER = "x-lorafleet-digest"


@dataclass(frozen=True)
class Question:
    """What a caller asks. Exactly one of `text`, `token_ids`, `messages` and `variables` is set."""

    model: str
    is_admin: bool
    sampling: SamplingParams
    """Its `max_new_tokens` counts only where `max_tokens` is None and nothing else says more."""
    max_tokens: int | None
    max_tokens_field: str
    """Name of that field in the caller's dialect, for errors."""
    default_max_tokens: int | None = None
    """What is taken without `max_tokens`; None is all the room there is."""
    stop: tuple[str, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    variables: Mapping[str, Any] | None = None
    truncate: int | None = None
    """Keep only that many of the last prompt tokens."""

    def __post_init__(self) -> None:
        # Every token is looked through for every stop string, on the loop that serves all callers.
        stop = self.stop or ()
        if len(stop) > MAX_STOP_STRINGS or not all(1 <= len(item) <= MAX_STOP_CHARACTERS for item in stop):
            raise InvalidRequest(
                f"stop must be at most {MAX_STOP_STRINGS} strings, each of 1 to {MAX_STOP_CHARACTERS} characters",
                field="stop",
            )


class Answer:
    """An answer in the making. Must be closed."""

    def __init__(
        self, generation: Generation, version: CatalogVersion | None, num_prompt: int, pod: Pod, metrics: PodMetrics
    ) -> None:
        self.num_prompt = num_prompt
        self.model = pod.config.base_id if version is None else version.registered.name
        self.headers = {
            ADAPTER_HEADER: "" if version is None else version.label,
            DIGEST_HEADER: pod.base_digest if version is None else version.digest,
        }
        self._adapter = "" if version is None else version.registered.name
        self._generation = generation
        self._metrics = metrics
        self._started_at = time.monotonic()
        self._is_closed = False

    @property
    def num_tokens(self) -> int:
        """Tokens generated so far."""
        return self._generation.num_tokens

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer piece by piece; the last one has a finish reason.

        Raises:
            PodUnavailable: the engine died.
            GenerationFailed: the engine gave up.
        """
        is_first = True
        async for piece in self._generation.pieces():
            if is_first:
                self._metrics.first_token(time.monotonic() - self._started_at)
                is_first = False
            if piece.finish_reason is not None:
                self._metrics.finished(time.monotonic() - self._started_at, piece.finish_reason)
            yield piece

    async def whole(self) -> WholeAnswer:
        """Wait for all of it."""
        pieces = [piece async for piece in self.pieces()]
        reason = pieces[-1].finish_reason
        assert reason is not None, "a generation ended without a reason"
        self.close()  # At once: after a stop string the engine would generate on while other answers are waited for.
        return WholeAnswer("".join(piece.text for piece in pieces), reason, self.num_tokens, tuple(pieces))

    def close(self) -> None:
        """Release what the answer holds; a generation that still runs is aborted."""
        if not self._is_closed:
            self._is_closed = True
            self._generation.close()
            self._metrics.closed(self._adapter, self.num_prompt, self.num_tokens)


@dataclass(frozen=True)
class WholeAnswer:
    """A finished answer."""

    text: str
    finish_reason: FinishReason
    num_tokens: int
    pieces: tuple[Piece, ...]


class Asker:
    """Begins answers."""

    def __init__(self, pod: Pod, metrics: PodMetrics) -> None:
        self.pod = pod
        self._metrics = metrics

    def is_admin(self, request: Request) -> bool:
        """Whether the request carries the admin token."""
        token = self.pod.config.admin_token
        given = request.headers.get("authorization", "")
        return token is not None and hmac.compare_digest(given.encode(), f"Bearer {token}".encode())

    async def ask(self, question: Question) -> Answer:
        """Begin to answer.

        Raises:
            ServingError: any of those that `api.errors` answers.
        """
        with ExitStack() as held:
            version = self.pod.resolve(question.model, is_admin=question.is_admin)
            if version is not None:
                # From finding a version on, it must not be unloaded.
                held.enter_context(self.pod.catalog.lease(version.digest))
            block = _prompt_block(version) if question.variables is not None else None
            self.pod.tokenizer.check_ids((token_id for token_id, _ in question.sampling.logit_bias), "logit_bias")
            token_ids = await self._encode(question, block)
            if question.truncate is not None:
                token_ids = token_ids[-question.truncate :]
            sampling = replace(question.sampling, max_new_tokens=self._fit(question, len(token_ids), block))
            stop = question.stop if question.stop is not None else block.stop if block is not None else ()
            generation = self.pod.begin(token_ids, sampling, stop, version)
        return Answer(generation, version, len(token_ids), self.pod, self._metrics)

    async def _encode(self, question: Question, block: PromptBlock | None) -> tuple[int, ...]:
        """Tokens of the prompt."""
        tokenizer, limit = self.pod.tokenizer, self.pod.max_model_len
        if question.token_ids is not None:
            tokenizer.check_ids(question.token_ids)
            return question.token_ids
        if question.messages is not None:
            return await asyncio.to_thread(tokenizer.encode_chat, question.messages, limit)
        if block is None:
            text = question.text or ""
            tokenizer.check_text(text, limit)
            return await off_loop(text, tokenizer.encode)
        text = block.render(question.variables or {})
        tokenizer.check_text(text, limit)
        return await off_loop(text, tokenizer.encode_rendered, chat=block.chat)

    def _fit(self, question: Question, num_prompt: int, block: PromptBlock | None) -> int:
        """Number of tokens to generate at most."""
        limit = self.pod.max_model_len
        room = limit - num_prompt
        if num_prompt == 0:
            raise InvalidRequest("the prompt is empty: send at least one token", field="prompt")
        if room < 1:
            raise PromptTooLong(f"the prompt has {num_prompt} tokens, the limit is {limit - 1}: shorten it")
        wanted = question.max_tokens
        if wanted is None:
            default = block.max_new_tokens if block is not None else question.default_max_tokens
            return min(default or room, room)
        if not 1 <= wanted <= room:
            field = question.max_tokens_field
            raise InvalidRequest(
                f"{field} is {wanted}, it must be between 1 and {room}: "
                f"the prompt has {num_prompt} tokens, both together may have {limit}",
                field=field,
            )
        return wanted


async def off_loop(text: str, encode: Callable[..., Result], **options: bool) -> Result:
    """Tokenize a text, in a thread where it would hold up other callers."""
    if len(text) <= _INLINE_CHARACTERS:
        return encode(text, **options)
    return await asyncio.to_thread(encode, text, **options)


def _prompt_block(version: CatalogVersion | None) -> PromptBlock:
    if version is None:
        raise InvalidRequest(
            "variables fill an adapter's template, and the base model has none: name an adapter or send a prompt",
            field="variables",
        )
    assert version.manifest is not None, "a version that is ready has its manifest"
    return version.manifest.prompt

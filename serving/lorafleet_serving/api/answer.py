"""From a request that was understood to its answer: encode, resolve, begin, count.

Both dialects ask through this one; they differ only in how they read requests and write answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from lorafleet_contract.prompt import PromptBlock
from lorafleet_serving.adapters.catalog import ServedAdapter
from lorafleet_serving.adapters.merged import MergedAdapter
from lorafleet_serving.api.callers import Callers
from lorafleet_serving.api.metrics import PodMetrics
from lorafleet_serving.api.schemas import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from lorafleet_serving.caller import Caller
from lorafleet_serving.chat_template import ChatMessage, ChatTemplate, Tool
from lorafleet_serving.constraint_check import ConstraintCheck
from lorafleet_serving.engine.request import FinishReason, Pooling, SamplingParams
from lorafleet_serving.exceptions import InvalidRequest, PromptTooLong
from lorafleet_serving.generation import Generation, Piece
from lorafleet_serving.pod import Pod

_INLINE_CHARACTERS = 4000
"""Shorter texts are tokenized on the event loop: a thread would cost more than the work."""

Result = TypeVar("Result")

ADAPTER_HEADER = "x-lorafleet-adapter"
DIGEST_HEADER = "x-lorafleet-digest"


@dataclass(frozen=True)
class Question:
    """What a caller asks. Exactly one of `text`, `token_ids`, `messages` and `variables` is set."""

    model: str
    caller: Caller
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
    messages: Sequence[ChatMessage] | None = None
    tools: Sequence[Tool] | None = None
    """Tools of a conversation, as its template is told of them."""
    variables: Mapping[str, Any] | None = None
    truncate: int | None = None
    """Keep only that many of the last prompt tokens."""
    merged: MergedAdapter | None = None
    """Answers in place of `model`."""
    pooling: Pooling | None = None
    """Asks for the prompt's vector instead of an answer."""

    def __post_init__(self) -> None:
        # Every token is looked through for every stop string, on the loop that serves all callers.
        stop = self.stop or ()
        if len(stop) > MAX_STOP_STRINGS or not all(1 <= len(item) <= MAX_STOP_CHARACTERS for item in stop):
            raise InvalidRequest(
                f"stop must be at most {MAX_STOP_STRINGS} strings, each of 1 to {MAX_STOP_CHARACTERS} characters",
                field="stop",
            )


@dataclass
class Timing:
    """Where the time of an answer went."""

    validation_s: float
    """From the request to its start in the engine: encoding, and loading what was merged for it."""
    queue_s: float = 0.0
    """Waiting in the engine."""
    first_token_s: float = 0.0
    """From the start to the first token."""
    total_s: float = 0.0
    """From the start to the last token."""


class Answer:
    """An answer in the making. Must be closed."""

    def __init__(
        self,
        generation: Generation,
        version: ServedAdapter | None,
        prompt: tuple[int, ...],
        asked_at: float,
        pod: Pod,
        metrics: PodMetrics,
    ) -> None:
        self.prompt = prompt
        self.num_prompt = len(prompt)
        self.model = pod.config.base_id if version is None else version.name
        self.headers = {
            ADAPTER_HEADER: "" if version is None else version.label,
            DIGEST_HEADER: pod.base_digest if version is None else version.digest,
        }
        self._adapter = "" if version is None else version.name
        self._generation = generation
        self._metrics = metrics
        self._started_at = time.monotonic()
        self.num_cached = 0
        """Tokens of the prompt that came from the prefix cache; known with the first piece."""
        self.timing = Timing(validation_s=self._started_at - asked_at)
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
            elapsed_s = time.monotonic() - self._started_at
            if is_first:
                self._metrics.first_token(elapsed_s)
                self.timing.first_token_s = elapsed_s
                self.timing.queue_s = piece.output.queue_s or 0.0
                self.num_cached = piece.output.num_cached or 0
                is_first = False
            if piece.finish_reason is not None:
                self._metrics.finished(elapsed_s, piece.finish_reason)
                self.timing.total_s = elapsed_s
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

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of its tokens, where they were asked for."""
        return sum(piece.output.logprob or 0.0 for piece in self.pieces) / len(self.pieces)


class Asker:
    """Begins answers."""

    def __init__(self, pod: Pod, metrics: PodMetrics) -> None:
        self.pod = pod
        self._metrics = metrics
        self._constraints = ConstraintCheck(lambda: pod.tokenizer)
        self.callers = Callers(pod.api_keys, pod.config.admin_token)

    def is_admin(self, request: Request) -> bool:
        """Whether the request carries the admin token."""
        return self.callers.is_admin(request.headers)

    def caller(self, request: Request) -> Caller:
        """Who sends a request, and on what terms.

        Raises:
            Unauthorized, Forbidden, InvalidRequest: a header does not allow it, or is wrong.
        """
        return self.callers.identify(request.headers)

    async def ask(self, question: Question) -> Answer:
        """Begin to answer.

        Raises:
            ServingError: any of those that `api.errors` answers.
        """
        asked_at = time.monotonic()
        with ExitStack() as held:
            version = await self._find_adapter(question, held)
            block = _prompt_block(version) if question.variables is not None else None
            self.pod.tokenizer.check_ids((token_id for token_id, _ in question.sampling.logit_bias), "logit_bias")
            self.pod.tokenizer.check_ids(question.sampling.stop_token_ids, "stop_token_ids")
            token_ids = await self._encode(question, block, _own_template(version))
            if question.truncate is not None:
                token_ids = token_ids[-question.truncate :]
            if question.sampling.constraint is not None:
                await self._constraints.check(question.sampling.constraint)
            sampling = replace(question.sampling, max_new_tokens=self._fit(question, len(token_ids), block))
            stop = question.stop if question.stop is not None else block.stop if block is not None else ()
            generation = self.pod.begin(token_ids, sampling, stop, version, question.pooling, question.caller)
        return Answer(generation, version, token_ids, asked_at, self.pod, self._metrics)

    def chat_template(self, model: str, *, caller: Caller) -> ChatTemplate:
        """The template that a conversation with tools would go through.

        Raises:
            ServingError: there is no such adapter, or no template.
        """
        template = _own_template(self.pod.resolve(model, names_versions=caller.names_versions))
        return self.pod.tokenizer.chat_template(template, with_tools=True)

    async def _find_adapter(self, question: Question, held: ExitStack) -> ServedAdapter | None:
        """What answers; it is held loaded from finding it on."""
        if question.merged is not None:
            held.enter_context(self.pod.catalog.lease(question.merged.digest))
            await self.pod.merged.load(question.merged.recipe)
            return question.merged
        version = self.pod.resolve(question.model, names_versions=question.caller.names_versions)
        if version is not None:
            held.enter_context(self.pod.catalog.lease(version.digest))
        return version

    async def _encode(self, question: Question, block: PromptBlock | None, template: str | None) -> tuple[int, ...]:
        """Tokens of the prompt."""
        tokenizer, limit = self.pod.tokenizer, self.pod.max_model_len
        if question.token_ids is not None:
            tokenizer.check_ids(question.token_ids)
            return question.token_ids
        if question.messages is not None:
            encode = partial(tokenizer.encode_chat, tools=question.tools, template=template)
            return await asyncio.to_thread(encode, question.messages, limit)
        if block is None:
            text = question.text or ""
            tokenizer.check_text(text, limit)
            return await off_loop(text, tokenizer.encode)
        text = block.render(question.variables or {})
        tokenizer.check_text(text, limit)
        return await off_loop(text, partial(tokenizer.encode_rendered, chat=block.chat, template=template))

    def _fit(self, question: Question, num_prompt: int, block: PromptBlock | None) -> int:
        """Number of tokens to generate at most."""
        limit = self.pod.max_model_len
        room = limit - num_prompt
        if num_prompt == 0:
            raise InvalidRequest("the prompt is empty: send at least one token", field="prompt")
        if question.pooling is not None and num_prompt <= limit:
            return 1  # Nothing is generated, so that the prompt may fill the model.
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


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Results of several pieces of work that run side by side; the first error ends all."""
    running = [asyncio.ensure_future(item) for item in work]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for task in running:  # After an error the others would wait for tokens that never come.
            task.cancel()


def _own_template(version: ServedAdapter | None) -> str | None:
    """An adapter's own chat template; None for that of the base model."""
    return None if version is None or version.manifest is None else version.manifest.chat_template


def _prompt_block(version: ServedAdapter | None) -> PromptBlock:
    if version is None or version.manifest is None:
        who = "the base model" if version is None else "a merged adapter"
        raise InvalidRequest(
            f"variables fill an adapter's template, and {who} has none: name an adapter or send a prompt",
            field="variables",
        )
    return version.manifest.prompt

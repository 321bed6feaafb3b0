"""From a question to the beginning of its answer: resolve, encode, fit, start.

Both dialects ask through this one; they differ only in how they read requests and write answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from fastapi import Request

from lorafleet_contract.prompt import PromptBlock
from lorafleet_serving.adapters.catalog import CatalogVersion, ServedAdapter
from lorafleet_serving.adapters.merged import MergedAdapter
from lorafleet_serving.api.answer import Answer
from lorafleet_serving.api.callers import Callers
from lorafleet_serving.api.metrics import PodMetrics
from lorafleet_serving.api.question import Question
from lorafleet_serving.api.sse import unless_disconnected
from lorafleet_serving.caller import Caller
from lorafleet_serving.chat_template import ChatTemplate
from lorafleet_serving.engine.request import SamplingParams
from lorafleet_serving.exceptions import (
    AdapterNotReady,
    DeadlineExceeded,
    InvalidRequest,
    NoRoom,
    PodUnavailable,
    PromptTooLong,
)
from lorafleet_serving.generation import Generation
from lorafleet_serving.loop import off_loop
from lorafleet_serving.pod import Pod
from lorafleet_serving.quota import Reservation


@dataclass(frozen=True)
class PreparedQuestion:
    """A question whose answer can begin."""

    question: Question
    version: ServedAdapter | None
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]
    num_prompt: int
    """Tokens of the prompt that are paid for with this answer; with another one to the same prompt, none."""
    reservation: Reservation = field(default_factory=Reservation)

    @property
    def generates(self) -> bool:
        """Whether an answer is made, and not only the prompt read."""
        return self.question.pooling is None and self.sampling.max_new_tokens > 0

    @property
    def num_most(self) -> int:
        """Tokens to be paid for at most."""
        return self.num_prompt + (self.sampling.max_new_tokens if self.question.pooling is None else 0)


class Asker:
    """Begins answers."""

    def __init__(self, pod: Pod, metrics: PodMetrics) -> None:
        self.pod = pod
        self._metrics = metrics
        self.callers = Callers(pod.key_file, pod.config.admin_token, pod.config.base_id)

    def is_admin(self, request: Request) -> bool:
        """Whether the request carries the admin token."""
        return self.callers.is_admin(request.headers)

    def caller(self, request: Request) -> Caller:
        """Who sends a request, and on what terms.

        Raises:
            Unauthorized, Forbidden, InvalidRequest: a header does not allow it, or is wrong.
        """
        return self.callers.identify(request.headers)

    @asynccontextmanager
    async def adapter_of(self, question: Question) -> AsyncIterator[ServedAdapter | None]:
        """What answers all questions of one request; None is the base model.

        Found once, and held loaded meanwhile, so that a promotion between two questions mixes no versions.

        Raises:
            ServingError: there is no such adapter, or it cannot be served.
            PodUnavailable: the pod shuts down.
            QuotaExceeded: the caller has had as many requests as it may have in a minute.
            DeadlineExceeded: the time that the request allows is over before all are asked.
        """
        with ExitStack() as held:
            held.enter_context(self.pod.in_flight.preparing())
            question.caller.take_request()
            async with _within(question.caller.deadline):
                yield await self._find_adapter(question, held)

    async def ask_all(self, request: Request, questions: Sequence[Question], running: ExitStack) -> list[Answer]:
        """Begin to answer all questions of one request with what answers its first; `running` closes the answers.

        Raises:
            ServingError: any of those that `api.errors` answers.
            ClientGone: the client has left, maybe while the adapter was brought; nothing waits for it any more.
        """
        return await unless_disconnected(request, self._ask_all(questions, running))

    async def prepare(
        self, questions: Sequence[Question], version: ServedAdapter | None, held: ExitStack
    ) -> list[PreparedQuestion]:
        """Encode and check the questions of one request, and set aside the tokens that their answers may come to.

        Args:
            questions: those of one request.
            version: what `adapter_of` found for them.
            held: gives back what is set aside and is not used.

        Raises:
            ServingError: any of those that `api.errors` answers.
        """
        prepared: list[PreparedQuestion] = []
        num_scored = 0
        for question in questions:
            before = prepared[-1] if question.is_repeated else None
            prepared.append(await self._prepare(question, version, num_scored, before))
            num_scored += question.num_prompt_logprobs(len(prepared[-1].token_ids))
        reserved = questions[0].caller.reserve([item.num_most for item in prepared])
        for item, reservation in zip(prepared, reserved, strict=True):
            reservation.num_prompt = item.num_prompt
            held.callback(reservation.close)
        return [replace(item, reservation=own) for item, own in zip(prepared, reserved, strict=True)]

    def begin(self, asked: PreparedQuestion) -> Answer:
        """Begin to answer.

        Raises:
            ServingError: any of those that `api.errors` answers.
        """
        question, version, sampling = asked.question, asked.version, asked.sampling
        watches = self.pod.watches(version, question.model, partial(self._ask_too, question)) if asked.generates else ()
        if watches and sampling.num_logprobs is None:
            sampling = replace(sampling, num_logprobs=0)  # By which the versions are compared.
        generation = self.pod.begin(
            asked.token_ids, sampling, asked.stop, version, question.pooling, question.caller, asked.reservation
        )
        return Answer(generation, version, asked.token_ids, question.asked_at, self.pod, self._metrics, watches)

    def most_at_once(self, caller: Caller) -> int:
        """How many questions of a caller may wait at the same time, however idle the pod is."""
        return self.pod.limits.most(caller.tenant)

    def check_number(self, questions: Sequence[Question], field: str) -> None:
        """Turn away a request whose questions can never wait all together: to come back would not help.

        Raises:
            InvalidRequest: there are too many.
        """
        limit = self.most_at_once(questions[0].caller)
        if len(questions) > limit:
            raise InvalidRequest(
                f"{field} asks for {len(questions)} answers, and {limit} may wait at a time: send fewer", field=field
            )

    def chat_template(self, model: str, *, caller: Caller) -> ChatTemplate:
        """The template that a conversation with tools would go through.

        Raises:
            ServingError: there is no such adapter, or no template.
        """
        template = _own_template(self.pod.resolve(model, caller))
        return self.pod.tokenizer.chat_template(template, with_tools=True)

    async def _ask_all(self, questions: Sequence[Question], running: ExitStack) -> list[Answer]:
        answers: list[Answer] = []
        async with self.adapter_of(questions[0]) as version:
            for asked in await self.prepare(questions, version, running):
                answers.append(self.begin(asked))
                running.callback(answers[-1].close)
        return answers

    async def _prepare(
        self,
        question: Question,
        version: ServedAdapter | None,
        num_scored: int,
        before: PreparedQuestion | None = None,
    ) -> PreparedQuestion:
        """Encode and check one question.

        `num_scored` are log-probabilities that the request's prompts before this one get; `before` is another question
        with the same prompt, whose tokens are paid for once.
        """
        block = _prompt_block(version) if question.variables is not None else None
        self.pod.tokenizer.check_ids((token_id for token_id, _ in question.sampling.logit_bias), "logit_bias")
        self.pod.tokenizer.check_ids(question.sampling.stop_token_ids, "stop_token_ids")
        token_ids = before.token_ids if before else await self._encode(question, block, _own_template(version))
        if question.truncate is not None:
            token_ids = token_ids[-question.truncate :]
        constraint = question.sampling.constraint
        if constraint is not None:
            constraint = await self.pod.constraints.check(constraint)
        max_tokens = self._fit(question, len(token_ids), block)
        question.check_prompt_logprobs(len(token_ids), num_scored)
        sampling = replace(question.sampling, max_new_tokens=max_tokens, constraint=constraint)
        stop = question.stop if question.stop is not None else block.stop if block is not None else ()
        num_prompt = 0 if before else len(token_ids)
        return PreparedQuestion(question, version, token_ids, sampling, stop, num_prompt)

    async def _ask_too(self, question: Question, version: CatalogVersion, caller: Caller) -> Generation:
        """Ask another version what one was asked, in its own template; nobody is told the answer."""
        asked = await self._prepare(replace(question, caller=caller), version, 0)
        sampling = replace(asked.sampling, num_logprobs=asked.sampling.num_logprobs or 0, num_prompt_logprobs=None)
        return self.pod.begin(asked.token_ids, sampling, asked.stop, version, None, caller, asked.reservation)

    async def _find_adapter(self, question: Question, held: ExitStack) -> ServedAdapter | None:
        """What answers; it is held loaded from finding it on."""
        if question.merged is not None:
            held.enter_context(self.pod.host.lease(question.merged.digest))
            await self._load(question.merged, question.caller)
            return question.merged
        version = self._resolve(question)
        while version is not None:
            with ExitStack() as lease:
                lease.enter_context(self.pod.host.lease(version.digest))
                await self._load(version, question.caller)
                # The name may have moved, or the version been withdrawn, while it was brought.
                now = self._resolve(question)
                if now is not None and now.digest == version.digest:
                    held.enter_context(lease.pop_all())
                    return now
                version = now
        return None

    async def _load(self, adapter: CatalogVersion | MergedAdapter, caller: Caller) -> None:
        """Have an adapter in memory, and count what that costs the request."""
        was_there, began = self.pod.host.holds(adapter.digest), time.monotonic()
        try:
            await self.pod.load(adapter, caller)
        except (AdapterNotReady, NoRoom, PodUnavailable):
            self._metrics.failed(adapter.name)
            raise
        if not was_there:
            self._metrics.stalled(time.monotonic() - began)

    def _resolve(self, question: Question) -> CatalogVersion | None:
        return self.pod.resolve(question.model, question.caller)

    async def _encode(self, question: Question, block: PromptBlock | None, template: str | None) -> tuple[int, ...]:
        """Tokens of the prompt."""
        tokenizer, limit = self.pod.tokenizer, self.pod.max_model_len
        if question.token_ids is not None:
            tokenizer.check_ids(question.token_ids, question.prompt_field)
            return question.token_ids
        if question.messages is not None:
            field = question.prompt_field
            encode = partial(tokenizer.encode_chat, tools=question.tools, template=template, field=field)
            return await asyncio.to_thread(encode, question.messages, limit)
        if block is None:
            text = question.text or ""
            tokenizer.check_text(text, limit, question.prompt_field)
            return await off_loop(text, tokenizer.encode)
        text = block.render(question.variables or {})
        tokenizer.check_text(text, limit, question.prompt_field)
        return await off_loop(
            text, partial(tokenizer.encode_rendered, chat=block.chat, template=template, field=question.prompt_field)
        )

    def _fit(self, question: Question, num_prompt: int, block: PromptBlock | None) -> int:
        """Number of tokens to generate at most."""
        limit = self.pod.max_model_len
        room = limit - num_prompt
        generates = question.pooling is None and not question.max_tokens == 0 == question.fewest_tokens
        # Where nothing is generated, the prompt may fill the model.
        longest = limit - 1 if generates else limit
        if num_prompt == 0:
            raise InvalidRequest("the prompt is empty: send at least one token", field=question.prompt_field)
        if num_prompt > longest:
            told = f"the prompt has {num_prompt} tokens, the limit is {longest}: shorten it"
            raise PromptTooLong(told, field=question.prompt_field)
        if not generates:
            return 0 if question.pooling is None else 1
        wanted = question.max_tokens
        if wanted is None:
            default = block.max_new_tokens if block is not None else question.default_max_tokens
            return min(default or room, room)
        if not question.fewest_tokens <= wanted <= room:
            field = question.max_tokens_field
            raise InvalidRequest(
                f"{field} is {wanted}, it must be between {question.fewest_tokens} and {room}: "
                f"the prompt has {num_prompt} tokens, both together may have {limit}",
                field=field,
            )
        return wanted


@asynccontextmanager
async def _within(deadline: float | None) -> AsyncIterator[None]:
    """Give up at a time of the monotonic clock, which the event loop's clock is."""
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceeded("the request's time was over before it was answered: allow it more time") from error


def _own_template(version: ServedAdapter | None) -> str | None:
    """An adapter's own chat template; None for that of the base model."""
    return None if version is None or version.manifest is None else version.manifest.chat_template


def _prompt_block(version: ServedAdapter | None) -> PromptBlock:
    if version is None or version.manifest is None:
        who = "the base model" if version is None else "an adapter that is merged or loaded by hand"
        raise InvalidRequest(
            f"variables fill an adapter's template, and {who} has none: name an adapter or send a prompt",
            field="variables",
        )
    return version.manifest.prompt

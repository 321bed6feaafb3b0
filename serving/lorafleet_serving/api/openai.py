"""The OpenAI dialect: completions, chat completions, models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from lorafleet_serving.api.answer import Answer, Asker, Question, WholeAnswer
from lorafleet_serving.api.openai_choices import ChatChoices, Choices, TextChoices
from lorafleet_serving.api.openai_chunks import ChatChunks, Chunks, Json, TextChunks, head, usage
from lorafleet_serving.api.openai_sampling import nth_sampling, sampling_of
from lorafleet_serving.api.schemas import (
    MAX_PROMPTS,
    ChatRequest,
    CompletionRequest,
    Prompt,
    SamplingFields,
)
from lorafleet_serving.api.sse import CLIENT_GONE, EventStream, unless_disconnected
from lorafleet_serving.exceptions import InvalidRequest

_DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of the legacy route."""


class OpenAIRoutes:
    """Routes under `/v1`."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._pod = asker.pod
        self.router = APIRouter(tags=["OpenAI"])
        self.router.add_api_route("/v1/completions", self.complete, methods=["POST"], response_model=None)
        self.router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        self.router.add_api_route("/v1/models", self.models, methods=["GET"])

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a prompt, or fill an adapter's template with `variables`."""
        _require_one("prompt", body.prompt, body.variables)
        prompts = [None] if body.prompt is None else _split_prompts(body.prompt)
        if body.stream and len(prompts) > 1:
            raise InvalidRequest(f"prompt holds {len(prompts)} prompts: a stream takes one", field="prompt")
        is_admin = self._asker.is_admin(request)
        sampling = sampling_of(body)
        questions = [
            Question(
                model=body.model,
                is_admin=is_admin,
                sampling=nth_sampling(sampling, number),
                max_tokens=body.max_tokens,
                max_tokens_field="max_tokens",
                default_max_tokens=_DEFAULT_COMPLETION_TOKENS,
                stop=body.stop_strings,
                text=prompt if isinstance(prompt, str) else None,
                token_ids=prompt if isinstance(prompt, tuple) else None,
                variables=body.variables,
            )
            for prompt in prompts
            for number in range(_num_answers(body))
        ]
        if body.stream:
            return await self._stream(questions[0], body, TextChunks)
        return await self._answer(request, questions, body, TextChoices(self._pod.tokenizer.decode))

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation through the base model's chat template, or `variables` through the adapter's."""
        _require_one("messages", body.messages, body.variables)
        messages = None
        if body.messages is not None:
            messages = [{"role": message.role, "content": message.text} for message in body.messages]
        field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        sampling, is_admin = sampling_of(body), self._asker.is_admin(request)
        questions = [
            Question(
                model=body.model,
                is_admin=is_admin,
                sampling=nth_sampling(sampling, number),
                max_tokens=getattr(body, field),
                max_tokens_field=field,
                stop=body.stop_strings,
                messages=messages,
                variables=body.variables,
            )
            for number in range(_num_answers(body))
        ]
        if body.stream:
            return await self._stream(questions[0], body, ChatChunks)
        return await self._answer(request, questions, body, ChatChoices(self._pod.tokenizer.decode))

    async def models(self) -> Json:
        """The base model, and every adapter that can be asked for by its bare name."""
        config = self._pod.config
        base = _model(config.base_id, root=str(config.engine.model), parent=None)
        base |= {"digest": self._pod.base_digest, "state": "ready" if self._pod.engine.is_ready else "loading"}
        base |= {"max_model_len": self._pod.engine.facts.max_model_len if self._pod.engine.facts else None}
        data = [base]
        for name, adapter in sorted(self._pod.catalog.adapters.items()):
            version = adapter.versions.get(adapter.serving or 0)
            if version is not None and version.state is not None:
                entry = _model(name, root=version.address or version.registered.source, parent=config.base_id)
                facts = {"version": adapter.serving, "digest": version.digest, "state": version.state.value}
                data.append(entry | facts)
        return {"object": "list", "data": data}

    async def _answer(
        self, request: Request, questions: Sequence[Question], body: SamplingFields, choices: Choices
    ) -> Response:
        answers: list[Answer] = []
        try:
            for question in questions:
                answers.append(await self._asker.ask(question))
            whole = await unless_disconnected(request, _gather(answers))
        finally:
            for answer in answers:
                answer.close()
        if whole is None:
            return Response(status_code=CLIENT_GONE)
        result = head(choices.prefix, choices.kind, answers[0].model)
        result["choices"] = [choices.write(index, item) for index, item in enumerate(whole)]
        # A prompt is counted once, however many answers it gets.
        num_prompt = sum(item.num_prompt for item in answers[:: _num_answers(body)])
        result["usage"] = usage(num_prompt, sum(item.num_tokens for item in whole))
        return JSONResponse(result, headers=answers[0].headers)

    async def _stream(self, question: Question, body: SamplingFields, chunks: type[Chunks]) -> Response:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        answer = await self._asker.ask(question)
        decode = self._pod.tokenizer.decode
        logprobs = None if question.sampling.num_logprobs is None else chunks.logprobs(decode)
        events = chunks(answer, with_usage=with_usage, logprobs=logprobs).events()
        return EventStream(events, answer.headers, answer.close, lorax=False)


async def _gather(answers: Sequence[Answer]) -> list[WholeAnswer]:
    running = [asyncio.ensure_future(answer.whole()) for answer in answers]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for task in running:  # After an error the others would wait for tokens that never come.
            task.cancel()


def _require_one(field: str, value: object, variables: object) -> None:
    if (value is None) == (variables is None):
        raise InvalidRequest(f"send either {field} or variables, exactly one of them", field=field)


def _split_prompts(prompt: Prompt) -> list[str | tuple[int, ...]]:
    if isinstance(prompt, str):
        return [prompt]
    if not 1 <= len(prompt) <= MAX_PROMPTS and not isinstance(prompt[0] if prompt else None, int):
        raise InvalidRequest(f"prompt holds {len(prompt)} prompts, it must hold 1 to {MAX_PROMPTS}", field="prompt")
    found: list[str | tuple[int, ...]] = []
    numbers: list[int] = []
    for item in prompt:
        if isinstance(item, int):
            numbers.append(item)
        else:
            found.append(item if isinstance(item, str) else tuple(item))
    return [*found, tuple(numbers)] if numbers else found


def _num_answers(body: SamplingFields) -> int:
    count = body.n or 1
    if body.stream and count > 1:
        raise InvalidRequest(f"n is {count}: a stream takes one answer", field="n")
    return count


def _model(model_id: str, *, root: str, parent: str | None) -> Json:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "lorafleet", "root": root, "parent": parent}

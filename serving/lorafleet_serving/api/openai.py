"""The OpenAI dialect: completions and chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from lorafleet_serving.api.answer import Answer, WholeAnswer
from lorafleet_serving.api.asker import Asker
from lorafleet_serving.api.chat_messages import template_messages
from lorafleet_serving.api.chat_schemas import ChatRequest
from lorafleet_serving.api.long_json import json_response
from lorafleet_serving.api.openai_choices import ChatChoice, EchoedPrompt, Form, TextChoice
from lorafleet_serving.api.openai_chunks import Chunks, head
from lorafleet_serving.api.openai_constraint import constraint_of
from lorafleet_serving.api.openai_sampling import nth_sampling, sampling_of
from lorafleet_serving.api.openai_tools import ToolUse, tool_use
from lorafleet_serving.api.openai_usage import usage
from lorafleet_serving.api.question import Question
from lorafleet_serving.api.schemas import MAX_PROMPTS, CompletionRequest, Prompt, SamplingFields
from lorafleet_serving.api.sse import EventStream, unless_disconnected
from lorafleet_serving.caller import Caller
from lorafleet_serving.exceptions import InvalidRequest
from lorafleet_serving.loop import together

_DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of the legacy route."""


@dataclass(frozen=True)
class _Plan:
    """What a request asks, and how its answers are written."""

    questions: Sequence[Question]
    """`num_made` for each prompt, side by side."""
    num_made: int
    num_given: int
    """Answers to each prompt that are given: the likeliest of those that are made."""
    writer: type[TextChoice] | type[ChatChoice]
    form: Form
    field: str = "n"
    """What asks for that many answers, for errors."""
    echoes: bool = False


class OpenAIRoutes:
    """Routes under `/v1` that generate."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._pod = asker.pod
        self.router = APIRouter(tags=["OpenAI"])
        self.router.add_api_route("/v1/completions", self.complete, methods=["POST"], response_model=None)
        self.router.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a prompt, or fill an adapter's template with `variables`."""
        _require_one("prompt", body.prompt, body.variables)
        num_given, num_made = body.n or 1, _num_made(body)
        sampling = replace(sampling_of(body), constraint=constraint_of(body))
        if num_made > num_given and sampling.num_logprobs is None:
            sampling = replace(sampling, num_logprobs=0)  # By which the likeliest are found.
        if body.echo:
            sampling = replace(sampling, num_prompt_logprobs=body.logprobs)
        first = Question(
            model=body.model,
            caller=self._asker.caller(request).on_behalf_of(body.user or body.safety_identifier),
            sampling=sampling,
            max_tokens=body.max_tokens,
            max_tokens_field="max_tokens",
            prompt_field="prompt" if body.variables is None else "variables",
            default_max_tokens=_DEFAULT_COMPLETION_TOKENS,
            fewest_tokens=0,
            stop=body.stop_strings,
            variables=body.variables,
        )
        prompts = (
            [first] if body.prompt is None else [_with_prompt(first, item) for item in _split_prompts(body.prompt)]
        )
        form = Form(self._pod.tokenizer.decode_token, body.logprobs is not None)
        questions = [item for prompt in prompts for item in _several(prompt, num_made)]
        field = "prompt" if len(prompts) > 1 else "best_of" if num_made > num_given else "n"
        plan = _Plan(questions, num_made, num_given, TextChoice, form, field, echoes=bool(body.echo))
        return await self._respond(request, plan, body)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation through the model's chat template, or `variables` through the adapter's."""
        _require_one("messages", body.messages, body.variables)
        caller = self._asker.caller(request).on_behalf_of(body.user or body.safety_identifier)
        tools = self._tool_use(body, caller)
        constraint = constraint_of(body)
        if tools is not None:
            constraint = tools.constraint(constraint)
        field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        question = Question(
            model=body.model,
            caller=caller,
            sampling=replace(sampling_of(body), constraint=constraint),
            max_tokens=getattr(body, field),
            max_tokens_field=field,
            prompt_field="messages" if body.variables is None else "variables",
            stop=body.stop_strings,
            messages=None if body.messages is None else template_messages(body.messages),
            tools=None if tools is None else [tool.model_dump(exclude_none=True) for tool in tools.tools],
            variables=body.variables,
        )
        count = body.n or 1
        form = Form(self._pod.tokenizer.decode_token, bool(body.logprobs), tools)
        return await self._respond(request, _Plan(_several(question, count), count, count, ChatChoice, form), body)

    def _tool_use(self, body: ChatRequest, caller: Caller) -> ToolUse | None:
        if not body.tools:
            return tool_use(body, tagged=True)
        if body.messages is None:
            raise InvalidRequest("tools go with messages, not with variables", field="tools")
        return tool_use(body, tagged=self._asker.chat_template(body.model, caller=caller).tags_calls)

    async def _respond(self, request: Request, plan: _Plan, body: SamplingFields) -> Response:
        self._asker.check_number(plan.questions, plan.field)
        with ExitStack() as running:
            answers = await self._asker.ask_all(request, plan.questions, running)
            echoes = self._echoes(plan, answers)
            if body.stream:
                writers = [plan.writer(place, plan.form, echo) for place, echo in enumerate(echoes)]
                with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
                chunks = Chunks(answers, writers, answers_per_prompt=plan.num_made, with_usage=with_usage)
                return EventStream(chunks.events(), answers[0].headers, running.pop_all().close, lorax=False)
            whole = await unless_disconnected(request, together(answer.whole() for answer in answers))
            write = partial(_result, plan, answers, whole, echoes)
            return await json_response(_num_logprobs(plan, answers), write, answers[0].headers)

    def _echoes(self, plan: _Plan, answers: Sequence[Answer]) -> list[EchoedPrompt | None]:
        """What stands before each answer: answers to one prompt share it."""
        if not plan.echoes:
            return [None] * len(answers)
        echoes: list[EchoedPrompt | None] = []
        for index in range(0, len(answers), plan.num_made):
            question, prompt = plan.questions[index], answers[index].prompt
            text = self._pod.tokenizer.decode(prompt) if question.text is None else question.text
            num_logprobs = question.num_prompt_logprobs(len(prompt))
            echoes += [EchoedPrompt(text, prompt, num_logprobs, self._pod.tokenizer)] * plan.num_made
        return echoes


def _result(
    plan: _Plan, answers: Sequence[Answer], whole: Sequence[WholeAnswer], echoes: Sequence[EchoedPrompt | None]
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    for index in range(0, len(whole), plan.num_made):
        if (echo := echoes[index]) is not None:
            echo.scores = whole[index].pieces[0].output.prompt
    result = head(plan.writer.prefix, plan.writer.kind, answers[0].model)
    result["choices"] = [
        plan.writer(place, plan.form, echoes[index]).whole(whole[index].pieces)
        for place, index in enumerate(_given(plan, whole))
    ]
    result["usage"] = usage(answers, plan.num_made)
    return result


def _num_logprobs(plan: _Plan, answers: Sequence[Answer]) -> int:
    """Log-probabilities that the answers show, at most."""
    sampling = plan.questions[0].sampling
    if not plan.form.with_logprobs:
        return 0
    num_shown = sum(answer.num_tokens + (answer.num_prompt if plan.echoes else 0) for answer in answers)
    return num_shown * ((sampling.num_logprobs or 0) + 1)


def _given(plan: _Plan, whole: Sequence[WholeAnswer]) -> list[int]:
    """Places of the answers that are given: of those to one prompt the likeliest, by the mean of their tokens."""
    places: list[int] = []
    for start in range(0, len(whole), plan.num_made):
        made = list(range(start, start + plan.num_made))
        if plan.num_given < plan.num_made:
            made = sorted(made, key=lambda place: -whole[place].mean_logprob)[: plan.num_given]
        places += made
    return places


def _require_one(field: str, value: object, variables: object) -> None:
    if (value is None) == (variables is None):
        raise InvalidRequest(f"send either {field} or variables, exactly one of them", field=field)


def _num_made(body: CompletionRequest) -> int:
    num_given, num_made = body.n or 1, body.best_of or body.n or 1
    if num_made < num_given:
        raise InvalidRequest(f"best_of is {num_made}, below n {num_given}: raise it", field="best_of")
    if num_made > num_given and body.stream:
        raise InvalidRequest(f"best_of is {num_made} and n {num_given}: a stream cannot choose", field="best_of")
    return num_made


def _several(question: Question, count: int) -> list[Question]:
    """One question for each answer; the first alone has the prompt scored."""
    return [
        replace(question, sampling=nth_sampling(question.sampling, number), is_repeated=number > 0)
        for number in range(count)
    ]


def _with_prompt(question: Question, prompt: str | tuple[int, ...]) -> Question:
    return replace(question, text=prompt) if isinstance(prompt, str) else replace(question, token_ids=prompt)


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

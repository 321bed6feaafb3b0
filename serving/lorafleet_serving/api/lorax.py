"""The LoRAX dialect: generate, generate_stream, embed, classify, info, tokenize.

A stop string ends the answer and is no part of it, in this dialect too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from lorafleet_serving.api.answer import Answer, WholeAnswer
from lorafleet_serving.api.asker import Asker
from lorafleet_serving.api.long_json import json_response
from lorafleet_serving.api.lorax_details import DetailsWriter, likeliest
from lorafleet_serving.api.lorax_headers import model_headers, timing_headers
from lorafleet_serving.api.lorax_question import QuestionReader
from lorafleet_serving.api.lorax_schemas import (
    ClassifyRequest,
    EmbedRequest,
    GenerateParameters,
    GenerateRequest,
    TokenizeRequest,
)
from lorafleet_serving.api.question import Question
from lorafleet_serving.api.schemas import MAX_ANSWERS, MAX_STOP_STRINGS
from lorafleet_serving.api.sse import EventStream, event, unless_disconnected
from lorafleet_serving.exceptions import InvalidRequest
from lorafleet_serving.loop import off_loop, together
from lorafleet_serving.version import VERSION

Json = dict[str, Any]


class LoraxRoutes:
    """Routes at the top level, as LoRAX has them."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._pod = asker.pod
        self.router = APIRouter(tags=["LoRAX"])
        routes: dict[str, Callable[..., Any]] = {
            "/": self.compatible,
            "/invocations": self.compatible,
            "/generate": self.generate,
            "/generate_stream": self.generate_stream,
            "/embed": self.embed,
            "/classify": self.classify,
            "/classify_batch": self.classify,
            "/tokenize": self.tokenize,
        }
        for path, route in routes.items():
            self.router.add_api_route(path, route, methods=["POST"], response_model=None)
        self.router.add_api_route("/info", self.info, methods=["GET"])

    async def compatible(self, body: GenerateRequest, request: Request) -> Response:
        """What the LoRAX client calls: a stream or a list of one answer, by the body's `stream`."""
        if body.stream:
            return await self.generate_stream(body, request)
        return await self._generate(body, request, as_list=True)

    async def generate(self, body: GenerateRequest, request: Request) -> Response:
        """Generate and answer at the end."""
        return await self._generate(body, request, as_list=False)

    async def generate_stream(self, body: GenerateRequest, request: Request) -> Response:
        """Generate and answer token by token."""
        (question,) = self._reader(request).generate(body, with_logprobs=True, streams=True)
        with ExitStack() as running:
            (answer,) = await self._asker.ask_all(request, [question], running)
            events = self._events(answer, question, _prefix(body))
            return EventStream(events, self._headers(body, question, answer), running.pop_all().close, lorax=True)

    async def embed(self, body: EmbedRequest, request: Request) -> Response:
        """The vector of a text: the model's hidden state behind its last norm, not brought to length one."""
        question = self._reader(request).embed(body)
        with ExitStack() as running:
            (answer,) = await self._asker.ask_all(request, [question], running)
            whole = await unless_disconnected(request, answer.whole())
        vector = whole.pieces[-1].output.vector
        assert vector is not None, "a request for a vector ended without one"
        headers = self._headers(body, question, answer) | timing_headers(answer, 0)
        return JSONResponse({"embeddings": vector.tolist()}, headers=headers)

    async def classify(self, body: ClassifyRequest) -> Response:
        """Refused: that is for models which were trained to classify tokens."""
        raise InvalidRequest(
            "classify is not served: the base model writes text, and this needs one that labels tokens", field="inputs"
        )

    async def info(self, request: Request) -> Json:
        """What is served, and within which limits."""
        config, limit, facts = self._pod.config, self._pod.max_model_len, self._pod.facts
        caller = self._asker.callers.onlooker(request.headers)
        return {
            "model_id": config.base_id,
            "model_sha": self._pod.base_digest,
            "model_dtype": config.engine.dtype.value,
            "model_device_type": config.engine.device.partition(":")[0],
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": config.engine.max_num_seqs + config.max_waiting,
            "max_best_of": MAX_ANSWERS,
            "max_stop_sequences": MAX_STOP_STRINGS,
            "max_input_length": limit - 1,
            "max_total_tokens": limit,
            "max_batch_total_tokens": facts.num_kv_blocks * facts.block_size,
            # Prompts join the running batch at every step.
            "waiting_served_ratio": 0.0,
            "max_waiting_tokens": 0,
            "eager_prefill": True,
            "validation_workers": 1,
            "version": VERSION,
            "sha": None,
            "docker_label": None,
            "request_logger_url": None,
            "adapters_loaded_by_hand": [name for name in sorted(self._pod.catalog.by_hand) if caller.may_ask(name)],
        }

    async def tokenize(self, body: TokenizeRequest, request: Request) -> Response:
        """Tokens of a text with their places. It counts as a request of its key, and its tokens as none."""
        quota = self._asker.callers.quota(request.headers)
        if quota is not None:
            quota.take_request(computes=False)
        tokenizer = self._pod.tokenizer
        tokenizer.check_text(body.inputs, self._pod.max_model_len, "inputs")
        tokens = await off_loop(body.inputs, tokenizer.split, add_special_tokens=body.add_special_tokens)
        return await json_response(len(tokens), lambda: [token._asdict() for token in tokens], {})

    async def _generate(self, body: GenerateRequest, request: Request, *, as_list: bool) -> Response:
        parameters = body.parameters or GenerateParameters()
        with_details = bool(parameters.details or parameters.decoder_input_details)
        with_logprobs = with_details or (parameters.best_of or 1) > 1
        questions = self._reader(request).generate(body, with_logprobs=with_logprobs)
        self._asker.check_number(questions, "best_of")
        with ExitStack() as running:
            answers = await self._asker.ask_all(request, questions, running)
            whole = await unless_disconnected(request, together(answer.whole() for answer in answers))
        best, prompt = likeliest(whole), answers[0].prompt
        headers = self._headers(body, questions[best], answers[best])
        headers |= timing_headers(answers[best], len(whole[best].pieces))

        def write() -> Json | list[Json]:
            result: Json = {"generated_text": _prefix(body) + whole[best].text}
            if with_details:
                result["details"] = self._details(questions, prompt, whole, best)
            return [result] if as_list else result

        num_shown = sum(answer.num_tokens for answer in whole) * ((questions[0].sampling.num_logprobs or 0) + 1)
        num_prefill = questions[0].num_prompt_logprobs(len(prompt)) * len(whole)
        return await json_response(num_shown + num_prefill if with_details else 0, write, headers)

    def _details(self, questions: list[Question], prompt: tuple[int, ...], whole: list[WholeAnswer], best: int) -> Json:
        writer = DetailsWriter(self._pod.tokenizer)
        prefill = writer.prefill(prompt, whole[0].pieces[0].output.prompt)
        details = [
            {"generated_text": answer.text, **writer.whole(answer, prompt, question.sampling, prefill)}
            for answer, question in zip(whole, questions, strict=True)
        ]
        chosen = details.pop(best)
        del chosen["generated_text"]
        return chosen | ({"best_of_sequences": details} if details else {})

    async def _events(self, answer: Answer, question: Question, prefix: str) -> AsyncIterator[str]:
        writer = DetailsWriter(self._pod.tokenizer)
        text, num_tokens = prefix, 0
        async for piece in answer.pieces():
            text += piece.text
            num_tokens += 1
            body: Json = {"token": writer.token(piece), "generated_text": None, "details": None}
            if piece.finish_reason is not None:
                body["generated_text"] = text
                body["details"] = writer.ending(piece.finish_reason, answer.num_prompt, num_tokens, question.sampling)
            yield event(body)

    def _reader(self, request: Request) -> QuestionReader:
        return QuestionReader(self._pod, self._asker.caller(request))

    def _headers(self, body: GenerateRequest | EmbedRequest, question: Question, answer: Answer) -> dict[str, str]:
        adapter_id = question.model if question.merged is None else question.merged.label
        return model_headers(self._pod, answer, len(body.inputs), adapter_id)


def _prefix(body: GenerateRequest) -> str:
    """What stands before the generated text."""
    return body.inputs if body.parameters is not None and body.parameters.return_full_text else ""

"""The LoRAX dialect: generate, generate_stream, info, tokenize.

A stop string ends the answer and is no part of it, in this dialect too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from lorafleet_serving.api.answer import Answer, Asker, Question, off_loop
from lorafleet_serving.api.lorax_schemas import GenerateParameters, GenerateRequest, TokenizeRequest
from lorafleet_serving.api.sse import CLIENT_GONE, EventStream, event, unless_disconnected
from lorafleet_serving.engine.request import FinishReason, SamplingParams
from lorafleet_serving.exceptions import InvalidRequest
from lorafleet_serving.generation import Piece
from lorafleet_serving.version import VERSION

_DEFAULT_NEW_TOKENS = 20

Json = dict[str, Any]


class LoraxRoutes:
    """Routes at the top level, as LoRAX has them."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._pod = asker.pod
        self.router = APIRouter(tags=["LoRAX"])
        self.router.add_api_route("/", self.compatible, methods=["POST"], response_model=None)
        self.router.add_api_route("/generate", self.generate, methods=["POST"], response_model=None)
        self.router.add_api_route("/generate_stream", self.generate_stream, methods=["POST"], response_model=None)
        self.router.add_api_route("/info", self.info, methods=["GET"])
        self.router.add_api_route("/tokenize", self.tokenize, methods=["POST"], response_model=None)

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
        parameters = body.parameters or GenerateParameters()
        answer = await self._asker.ask(self._question(body, request, with_logprobs=True))
        events = self._events(answer, body.inputs if parameters.return_full_text else "", parameters.seed)
        return EventStream(events, answer.headers, answer.close, lorax=True)

    async def info(self) -> Json:
        """What is served, and within which limits."""
        config = self._pod.config
        limit = self._pod.max_model_len
        return {
            "model_id": config.base_id,
            "model_sha": self._pod.base_digest,
            "model_dtype": config.engine.dtype.value,
            "model_device_type": config.engine.device,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": config.engine.max_num_seqs + config.max_waiting,
            "max_best_of": 1,
            "max_input_length": limit - 1,
            "max_total_tokens": limit,
            "max_batch_total_tokens": config.engine.max_batched_tokens,
            "version": VERSION,
        }

    async def tokenize(self, body: TokenizeRequest) -> Response:
        """Tokens of a text with their places."""
        tokenizer = self._pod.tokenizer
        tokenizer.check_text(body.inputs, self._pod.max_model_len)
        tokens = await off_loop(body.inputs, tokenizer.split, add_special_tokens=body.add_special_tokens)
        return JSONResponse([token._asdict() for token in tokens])

    async def _generate(self, body: GenerateRequest, request: Request, *, as_list: bool) -> Response:
        parameters = body.parameters or GenerateParameters()
        answer = await self._asker.ask(self._question(body, request, with_logprobs=bool(parameters.details)))
        try:
            whole = await unless_disconnected(request, answer.whole())
        finally:
            answer.close()
        if whole is None:
            return Response(status_code=CLIENT_GONE)
        prefix = body.inputs if parameters.return_full_text else ""
        result: Json = {"generated_text": prefix + whole.text}
        if parameters.details:
            details = _details(answer, whole.finish_reason, parameters.seed)
            tokens = [self._token(piece) for piece in whole.pieces]
            result["details"] = {**details, "skipped_tokens": 0, "prefill": [], "tokens": tokens}
        return JSONResponse([result] if as_list else result, headers=answer.headers)

    async def _events(self, answer: Answer, prefix: str, seed: int | None) -> AsyncIterator[str]:
        text = prefix
        async for piece in answer.pieces():
            text += piece.text
            body: Json = {"token": self._token(piece), "generated_text": None, "details": None}
            if piece.finish_reason is not None:
                body["generated_text"] = text
                body["details"] = _details(answer, piece.finish_reason, seed)
            yield event(body)

    def _question(self, body: GenerateRequest, request: Request, *, with_logprobs: bool) -> Question:
        parameters = body.parameters or GenerateParameters()
        if not body.inputs and parameters.variables is None:
            raise InvalidRequest("inputs is empty: send a prompt, or parameters.variables", field="inputs")
        alternatives = parameters.return_k_alternatives
        return Question(
            model=parameters.adapter_id or "",
            is_admin=self._asker.is_admin(request),
            sampling=_sampling(parameters, alternatives if alternatives is not None else 0 if with_logprobs else None),
            max_tokens=parameters.max_new_tokens,
            max_tokens_field="max_new_tokens",
            default_max_tokens=_DEFAULT_NEW_TOKENS,
            stop=None if parameters.stop is None else tuple(item for item in parameters.stop if item),
            text=body.inputs if parameters.variables is None else None,
            variables=parameters.variables,
            truncate=parameters.truncate,
        )

    def _token(self, piece: Piece) -> Json:
        output = piece.output
        # The end token is no part of the engine's answer, but this dialect shows one.
        token_id = output.token_id if output.token_id is not None else self._pod.tokenizer.eos_token_id
        token: Json = {
            "id": token_id,
            "text": piece.token_text,
            "logprob": output.logprob if output.logprob is not None else 0.0,
            "special": output.token_id is None or self._pod.tokenizer.is_special(output.token_id),
            "skipped": False,
        }
        if output.alternatives:
            token["alternative_tokens"] = [
                {"id": item.token_id, "text": self._pod.tokenizer.decode([item.token_id]), "logprob": item.logprob}
                for item in output.alternatives
            ]
        return token


def _sampling(parameters: GenerateParameters, num_logprobs: int | None) -> SamplingParams:
    """Any setting that only makes sense with sampling turns it on, as in LoRAX."""
    temperature = parameters.temperature
    filters = (parameters.top_k, parameters.top_p, parameters.typical_p)
    warps = temperature not in (None, 1.0) or any(value is not None for value in filters)
    samples = parameters.do_sample or warps
    return SamplingParams(
        temperature=(1.0 if temperature is None else temperature) if samples else 0.0,
        top_k=parameters.top_k,
        top_p=parameters.top_p,
        typical_p=parameters.typical_p,
        repetition_penalty=1.0 if parameters.repetition_penalty is None else parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty or 0.0,
        presence_penalty=parameters.presence_penalty or 0.0,
        seed=parameters.seed,
        ignore_eos=bool(parameters.ignore_eos_token),
        num_logprobs=num_logprobs,
    )


def _details(answer: Answer, reason: FinishReason, seed: int | None) -> Json:
    names = {FinishReason.EOS: "eos_token", FinishReason.LENGTH: "length"}
    return {
        "finish_reason": names.get(reason, "stop_sequence"),
        "prompt_tokens": answer.num_prompt,
        "generated_tokens": answer.num_tokens,
        "seed": seed,
    }

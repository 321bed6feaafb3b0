"""Embeddings of the OpenAI dialect: prompts as vectors of length one, by the base model or an adapter."""

from __future__ import annotations

import asyncio
import base64
import math
import sys
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from lorafleet_serving.api.answer import Answer
from lorafleet_serving.api.asker import Asker, PreparedQuestion
from lorafleet_serving.api.long_json import json_response
from lorafleet_serving.api.question import Question
from lorafleet_serving.api.schemas import Prompt, RequestBody
from lorafleet_serving.api.sse import unless_disconnected
from lorafleet_serving.engine.request import Pooling, SamplingParams
from lorafleet_serving.exceptions import InvalidRequest
from lorafleet_serving.loop import together

MAX_INPUTS = 256
"""Texts of one request."""
_AT_A_TIME = 16
"""Texts of one request that are in the engine at the same time: others wait less behind it."""

Json = dict[str, Any]


class EmbeddingRequest(RequestBody):
    """Body of `/v1/embeddings`."""

    input: Prompt
    model: str = Field("", description="`name`, `name@alias`, `name:version` (admin), or the base model")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="`float` unless set")
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="Only the model's own")
    pooling: Annotated[Pooling, Field(strict=False)] | None = Field(
        None, description="`last`, the last token's vector, unless set; or `mean`"
    )
    user: str | None = Field(None, description="Accepted and not used")


class EmbeddingRoutes:
    """The embeddings route."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._pod = asker.pod
        self.router = APIRouter(tags=["OpenAI"])
        self.router.add_api_route("/v1/embeddings", self.embed, methods=["POST"], response_model=None)

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        """One vector for each text: the model's last hidden state, pooled, brought to length one."""
        self._check_dimensions(body.dimensions)
        caller = self._asker.caller(request)
        questions = [
            Question(
                model=body.model,
                caller=caller,
                sampling=SamplingParams(),
                max_tokens=None,
                max_tokens_field="max_tokens",
                prompt_field="input",
                text=item if isinstance(item, str) else None,
                token_ids=None if isinstance(item, str) else item,
                pooling=body.pooling or Pooling.LAST,
            )
            for item in split_inputs(body.input)
        ]
        answers = await unless_disconnected(request, self._vectors(questions))
        first, _ = answers[0]
        num_tokens = sum(answer.num_prompt for answer, _ in answers)
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        form = _base64 if body.encoding_format == "base64" else _numbers

        def write() -> Json:
            data = [
                {"object": "embedding", "index": index, "embedding": form(_normalized(vector))}
                for index, (_, vector) in enumerate(answers)
            ]
            return {"object": "list", "data": data, "model": first.model, "usage": usage}

        return await json_response(sum(len(vector) for _, vector in answers), write, first.headers)

    async def _vectors(self, questions: Sequence[Question]) -> list[tuple[Answer, array[float]]]:
        turns = asyncio.Semaphore(min(_AT_A_TIME, self._asker.most_at_once(questions[0].caller)))

        async def vector(asked: PreparedQuestion) -> tuple[Answer, array[float]]:
            async with turns:
                answer = self._asker.begin(asked)
                try:
                    found = (await answer.whole()).pieces[-1].output.vector
                finally:
                    answer.close()
            assert found is not None, "a request for a vector ended without one"
            return answer, found

        async with self._asker.adapter_of(questions[0]) as version:
            with ExitStack() as held:
                prepared = await self._asker.prepare(questions, version, held)
                return await together(vector(asked) for asked in prepared)

    def _check_dimensions(self, wanted: int | None) -> None:
        if wanted is None:
            return
        size = self._pod.facts.hidden_size
        if wanted != size:
            raise InvalidRequest(
                f"dimensions is {wanted}, the model's vectors have {size} and were not trained to be cut: leave it out",
                field="dimensions",
            )


def split_inputs(given: Prompt) -> list[str | tuple[int, ...]]:
    """The texts, or arrays of tokens, of one request.

    Raises:
        InvalidRequest: there are none, too many, or an empty one.
    """
    items: list[str | tuple[int, ...]]
    if isinstance(given, str):
        items = [given]
    elif given and isinstance(given[0], int):
        items = [tuple(item for item in given if isinstance(item, int))]
    else:
        items = [item if isinstance(item, str) else tuple(item) for item in given if not isinstance(item, int)]
    if not 1 <= len(items) <= MAX_INPUTS:
        raise InvalidRequest(f"input holds {len(items)} texts, it must hold 1 to {MAX_INPUTS}", field="input")
    if not all(items):
        raise InvalidRequest("input holds an empty text: send at least one token", field="input")
    return items


def _normalized(vector: array[float]) -> array[float]:
    length = math.sqrt(math.fsum(value * value for value in vector))
    return array("f", (value / length for value in vector)) if length else vector


def _numbers(vector: array[float]) -> list[float]:
    return vector.tolist()


def _base64(vector: array[float]) -> str:
    """Little-endian fp32, as OpenAI's client reads it."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()

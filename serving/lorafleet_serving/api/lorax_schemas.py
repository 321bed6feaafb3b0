"""Request bodies of the LoRAX dialect, as its client sends them: every field may be null."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue

from lorafleet_serving.adapters.merge_recipe import MajoritySign, MergeStrategy
from lorafleet_serving.api.schemas import MAX_ANSWERS, MAX_PROMPT_LOGPROBS, RequestBody, Strings
from lorafleet_serving.engine.request import Pooling

MAX_MERGED = 16
"""Adapters that one request may merge."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


AdapterSource = Annotated[Literal["hub", "local", "s3", "pbase", "mlflow"], BeforeValidator(_lower)]


MergeWeight = Annotated[float, Field(ge=-1000, le=1000)]
"""More than anybody merges with, and far from where products of factors are no numbers any more."""


class MergedAdaptersField(RequestBody):
    """Adapters of the registry, merged as PEFT's `add_weighted_adapter` does."""

    ids: Annotated[list[str], Field(min_length=1, max_length=MAX_MERGED)]
    weights: Annotated[list[MergeWeight], Field(min_length=1, max_length=MAX_MERGED)]
    merge_strategy: Annotated[MergeStrategy, Field(strict=False)] | None = Field(
        None, description="`linear` unless set"
    )
    density: float | None = Field(
        None, ge=0.0, le=1.0, description="Share of the elements that is kept; `linear` needs none, the others above 0"
    )
    majority_sign_method: Annotated[MajoritySign, Field(strict=False)] | None = Field(
        None, description="`total` unless set; for the ties strategies"
    )
    seed: int | None = Field(None, ge=0, lt=2**64, description="Of what the dare strategies drop; 0 unless set")


class AdapterParameters(RequestBody):
    """Which adapter a request asks."""

    adapter_id: str | None = Field(None, description="`name`, `name@alias`, `name:version` (admin), or the base model")
    adapter_source: AdapterSource | None = Field(
        None, description="Accepted and not used: every adapter comes from the registry"
    )
    merged_adapters: MergedAdaptersField | None = None
    api_token: str | None = Field(None, description="Accepted and not used", repr=False)


class ResponseFormat(RequestBody):
    """What the whole answer must fit."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="For the JSON types; any object unless set"
    )
    regex: str | None = Field(None, description="For the type of that name, which needs it")


class GenerateParameters(AdapterParameters):
    """`parameters` of a generate request. Ranges that are not given here are those of `SamplingParams`."""

    variables: dict[str, Any] | None = Field(None, description="Values for the adapter's own prompt template")
    temperature: float | None = None
    repetition_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    do_sample: bool | None = False
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="Answers of which the likeliest is given")
    max_new_tokens: int | None = None
    ignore_eos_token: bool | None = False
    return_full_text: bool | None = None
    stop: Strings | None = None
    truncate: int | None = Field(None, ge=1, description="Keep only that many of the prompt's last tokens")
    details: bool | None = False
    decoder_input_details: bool | None = Field(
        False, description=f"Tokens of the prompt, in `details`: at most {MAX_PROMPT_LOGPROBS}"
    )
    return_k_alternatives: int | None = Field(None, ge=1, le=20)
    apply_chat_template: bool | None = Field(False, description="`inputs` is the user's turn of the chat template")
    seed: int | None = None
    watermark: bool | None = Field(False, description="Not served: only false")
    response_format: ResponseFormat | None = None


_TEXT_OR_VARIABLES: list[JsonValue] = [
    {"required": ["inputs"], "properties": {"inputs": {"minLength": 1}}},
    {
        "required": ["parameters"],
        "properties": {
            "parameters": {"type": "object", "required": ["variables"], "properties": {"variables": {"type": "object"}}}
        },
    },
]
"""For the document."""


class GenerateRequest(RequestBody):
    """Body of `/generate` and `/generate_stream`."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _TEXT_OR_VARIABLES})

    inputs: str = ""
    parameters: GenerateParameters | None = None
    stream: bool | None = None


class EmbedParameters(AdapterParameters):
    """`parameters` of an embed request."""

    pooling: Annotated[Pooling, Field(strict=False)] | None = Field(None, description="`last` unless set")


class EmbedRequest(RequestBody):
    """Body of `/embed`."""

    inputs: str
    parameters: EmbedParameters | None = None
    stream: Literal[False] | None = None


class ClassifyRequest(RequestBody):
    """Body of `/classify` and `/classify_batch`."""

    inputs: str | Strings
    parameters: dict[str, Any] | None = None
    stream: bool | None = None


class TokenizeRequest(RequestBody):
    """Body of `/tokenize`."""

    inputs: str
    add_special_tokens: bool = True

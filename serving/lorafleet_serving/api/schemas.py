"""Request bodies of the OpenAI dialect, without the parts of a conversation.

Unknown fields are refused, so that nothing is ignored in silence. What a client sends by itself and what changes no
answer is accepted, and its description says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, StrictInt, model_validator
from pydantic.config import JsonDict

from lorafleet_serving.engine.constraint import MAX_GBNF_CHARACTERS

MAX_PROMPTS = 64
MAX_ANSWERS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 500
MAX_BIASES = 300
MAX_METADATA = 100
MAX_LOGPROBS = 20
MAX_PROMPT_LOGPROBS = 65_536
"""Log-probabilities of prompt tokens and of alternatives to them that a request may ask for: 8192 tokens with seven."""
_MAX_FIELDS = 100
_NOT_USED = "Accepted and not used"
_GRAMMAR = f"In Lark, or in GBNF of at most {MAX_GBNF_CHARACTERS} characters"


class _FirstErrorOnly(FailFast):
    """Without it, a long list of wrong items is an error for each, and the pod stands still while they are written."""

    def __hash__(self) -> int:  # Members of a union are hashed with what they are marked with.
        return hash(type(self))


FirstErrorOnly = _FirstErrorOnly()


def _at_most(num_items: int) -> BeforeValidator:
    """A mapping of no more items, counted first: each wrong one would be an error of its own, as in a long list."""

    def count(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > num_items:
            raise ValueError(f"{len(value)} items are more than the {num_items} that may be given: send fewer")
        return value

    return BeforeValidator(count)


Bias = Annotated[float, Field(ge=-100, le=100)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Strings = Annotated[list[str], FirstErrorOnly]
Text = Annotated[str, Field(min_length=1)]
# What a prompt must not be stands in the document alone: routes tell it in better words than a union of types can.
_NOT_EMPTY = Field(json_schema_extra={"minItems": 1})
TokenId = Annotated[StrictInt, Field(json_schema_extra={"minimum": 0})]
PromptText = Annotated[str, Field(json_schema_extra={"minLength": 1})]
Tokens = Annotated[list[TokenId], FirstErrorOnly, _NOT_EMPTY]
Prompt = (
    PromptText
    | Tokens
    | Annotated[list[PromptText], FirstErrorOnly, _NOT_EMPTY]
    | Annotated[list[Tokens], FirstErrorOnly, _NOT_EMPTY]
)
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[list[StopString], FirstErrorOnly, Field(max_length=MAX_STOP_STRINGS)]


class RequestBody(BaseModel):
    """Base of all request bodies. Values are taken as they come: no text becomes a number, no number a truth."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > _MAX_FIELDS:
            raise ValueError(f"{len(data)} fields are more than any request has, at most {_MAX_FIELDS} are read")
        return {name: _whole(value) for name, value in data.items()}


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 2.0 is as good an integer as 2."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    # Of a prompt's tokens there may be millions, and mostly nothing to do.
    if not isinstance(value, list) or set(map(type, value)) <= {int, str}:
        return value
    return [_whole(item) for item in value]


def exactly_one(*names: str) -> JsonDict:
    """For the document: that a body has one of these fields, and not null."""
    return {
        "oneOf": [
            {
                "required": [name],
                "properties": {
                    other: {"not": {"type": "null"}} if other == name else {"type": "null"} for other in names
                },
            }
            for name in names
        ]
    }


class StreamOptions(RequestBody):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="One more chunk at the end, with the counts of tokens")
    include_obfuscation: Literal[False] | None = None


class NamedSchema(RequestBody):
    """A JSON schema with its name."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = Field(None, description=_NOT_USED)
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="Any object unless set")
    strict: bool | None = Field(None, description="Accepted; answers always fit the schema")


class TextFormat(RequestBody):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestBody):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(RequestBody):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


AnswerFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(RequestBody):
    """What the whole answer must fit, as vLLM writes it: exactly one of these."""

    model_config = ConfigDict(json_schema_extra=exactly_one("json", "regex", "choice", "grammar", "json_object"))

    json_schema: str | dict[str, Any] | None = Field(None, alias="json", description="A JSON schema")
    regex: str | None = None
    choice: Annotated[list[Text], FirstErrorOnly, Field(min_length=1)] | None = None
    grammar: str | None = Field(None, description=_GRAMMAR)
    json_object: Literal[True] | None = Field(None, description="Any JSON object")


class ConstraintFields(RequestBody):
    """What binds the whole answer: at most one of these."""

    response_format: AnswerFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = Field(None, description="A JSON schema")
    guided_regex: str | None = None
    guided_choice: Annotated[list[Text], FirstErrorOnly, Field(min_length=1)] | None = None
    guided_grammar: str | None = Field(None, description=_GRAMMAR)


class SamplingFields(ConstraintFields):
    """What both OpenAI routes share."""

    model: str = Field("", description="`name`, `name@alias`, `name:version` (admin), or the base model")
    variables: dict[str, Any] | None = Field(None, description="Values for the adapter's own prompt template")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, description="0, greedy, unless set: adapters are evaluated greedily")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 switch it off")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenKey, Bias] | None, _at_most(MAX_BIASES)] = Field(
        None, max_length=MAX_BIASES, description="Token ids, and what is added to their logits"
    )
    min_tokens: int | None = Field(None, ge=0, description="Tokens before which the answer does not end")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    ignore_eos: bool | None = Field(None, description="Go on after the end token; a bound answer ends where it must")
    stop: StopString | StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], FirstErrorOnly, Field(max_length=MAX_BIASES)] | None = None
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="Answers to each prompt")
    user: str | None = Field(
        None, description="Whom the request is for: a canary answers the same users again and again"
    )
    metadata: Annotated[dict[str, str] | None, _at_most(MAX_METADATA)] = Field(
        None, max_length=MAX_METADATA, description=_NOT_USED
    )
    store: bool | None = Field(None, description=f"{_NOT_USED}: nothing is stored")
    service_tier: str | None = Field(None, description=_NOT_USED)
    safety_identifier: str | None = Field(None, description="The same, where `user` is not given")
    prompt_cache_key: str | None = Field(None, description=f"{_NOT_USED}: equal prompts share their beginnings anyway")

    @property
    def stop_strings(self) -> tuple[str, ...] | None:
        """Stop strings as a tuple; None when none were sent."""
        if self.stop is None:
            return None
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(SamplingFields):
    """Body of `/v1/completions`: `prompt` or `variables`."""

    model_config = ConfigDict(json_schema_extra=exactly_one("prompt", "variables"))

    prompt: Prompt | None = None
    max_tokens: int | None = Field(None, ge=0, description="16 unless set; 0 reads the prompt alone, as for `echo`")
    echo: bool | None = Field(None, description="Begin the answer with the prompt; `logprobs` then covers it too")
    best_of: int | None = Field(
        None, ge=1, le=MAX_ANSWERS, description="Answers that are made, of which the `n` likeliest are given"
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Alternatives reported beside each token; with `echo`, all prompts of a request together may have "
        f"{MAX_PROMPT_LOGPROBS} log-probabilities",
    )
    # A field that clients send at its neutral value; any other value is refused rather than ignored.
    suffix: None = None

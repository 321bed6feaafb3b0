"""Request bodies of the OpenAI dialect. Unknown fields are refused, so that nothing is ignored in silence."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictInt, model_validator

MAX_PROMPTS = 64
MAX_ANSWERS = 16
_MAX_FIELDS = 100


class _FirstErrorOnly(FailFast):
    """Without it, a long list of wrong items is an error for each, and the pod stands still while they are written."""

    def __hash__(self) -> int:  # Members of a union are hashed with what they are marked with.
        return hash(type(self))


Tokens = Annotated[list[StrictInt], _FirstErrorOnly()]
Strings = Annotated[list[str], _FirstErrorOnly()]
Prompt = str | Tokens | Strings | Annotated[list[Tokens], _FirstErrorOnly()]


class RequestBody(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > _MAX_FIELDS:
            raise ValueError(f"{len(data)} fields are more than any request has, at most {_MAX_FIELDS} are read")
        return data


class StreamOptions(RequestBody):
    """Options of a streamed answer."""

    include_usage: bool = False


class SamplingFields(RequestBody):
    """What both OpenAI routes share. Their ranges are those of `SamplingParams`."""

    model: str = Field("", description="`name`, `name@alias`, `name:version` (admin), or the base model")
    variables: dict[str, Any] | None = Field(None, description="Values for the adapter's own prompt template")
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, description="0, greedy, unless set: adapters are evaluated greedily")
    top_p: float | None = None
    top_k: int | None = Field(None, description="0 and -1 switch it off")
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="Token ids, and what is added to their logits")
    min_tokens: int | None = Field(None, description="Tokens before which the answer does not end")
    seed: int | None = None
    ignore_eos: bool = False
    stop: str | Strings | None = None
    user: str | None = Field(None, description="Accepted and not used")
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS, description="Answers to each prompt; with a stream, one")

    @property
    def stop_strings(self) -> tuple[str, ...] | None:
        """Stop strings as a tuple; None when none were sent."""
        if self.stop is None:
            return None
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(SamplingFields):
    """Body of `/v1/completions`: `prompt` or `variables`."""

    prompt: Prompt | None = None
    max_tokens: int | None = None
    # Fields that clients send at their neutral value; any other value is refused rather than ignored.
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None
    logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives reported beside each token")


class TextPart(RequestBody):
    """A part of a message that consists of several."""

    type: Literal["text"]
    text: str


class ChatMessage(RequestBody):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], _FirstErrorOnly()]
    name: str | None = None

    @property
    def text(self) -> str:
        """The message's text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(SamplingFields):
    """Body of `/v1/chat/completions`: `messages` or `variables`."""

    messages: Annotated[list[ChatMessage], _FirstErrorOnly(), Field(min_length=1)] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Alternatives beside each token; needs `logprobs`")
    tools: None = None
    tool_choice: Literal["none"] | None = None
    response_format: None = None

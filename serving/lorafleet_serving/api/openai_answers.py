"""Answers of the OpenAI dialect, for the OpenAPI document: fields without a default are always there."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AnswerBody(BaseModel):
    """Base of all described answers."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetails(AnswerBody):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="Name of the field that is at fault, where one is")
    code: int = Field(description="The status")


class OpenAIError(AnswerBody):
    """An error of every route that is not LoRAX's."""

    error: ErrorDetails


class PromptTokensDetails(AnswerBody):
    """Where tokens of the prompt came from."""

    cached_tokens: int = Field(description="Read from the prefix cache")


class Usage(AnswerBody):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TextLogprobsField(AnswerBody):
    """Log-probabilities of a completion, side by side."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(AnswerBody):
    """One completion."""

    index: int
    text: str
    logprobs: TextLogprobsField | None
    finish_reason: Literal["stop", "length"]


class Completion(AnswerBody):
    """Answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(AnswerBody):
    """A piece of one completion."""

    index: int
    text: str
    logprobs: TextLogprobsField | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunk(AnswerBody):
    """Event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = Field(None, description="In the last chunk, where it was asked for")


class LikelyToken(AnswerBody):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(LikelyToken):
    """A token of the answer."""

    top_logprobs: list[LikelyToken]


class ChatLogprobsField(AnswerBody):
    """Log-probabilities of a message."""

    content: list[ChosenToken]
    refusal: None


class AnsweredFunction(AnswerBody):
    """What is called."""

    name: str
    arguments: str


class AnsweredCall(AnswerBody):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class AnsweredMessage(AnswerBody):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnsweredCall] = Field([], description="Only where tools are called")


class ChatCompletionChoice(AnswerBody):
    """One answer to a conversation."""

    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobsField | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(AnswerBody):
    """Answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatCompletionChoice]
    usage: Usage


class StreamedCall(AnsweredCall):
    """A call of a tool, as a whole."""

    index: int


class ChatDelta(AnswerBody):
    """What a chunk adds to a message."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    tool_calls: list[StreamedCall] = Field([], description="Only where tools are called")


class ChatChunkChoice(AnswerBody):
    """A piece of one answer to a conversation."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobsField | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatCompletionChunk(AnswerBody):
    """Event of a streamed answer to a conversation."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(None, description="In the last chunk, where it was asked for")


class EmbeddingEntry(AnswerBody):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(AnswerBody):
    """Counts of tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(AnswerBody):
    """Answer of `/v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage


class ModelEntry(AnswerBody):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None = Field(description="The base model, of an adapter")
    digest: str
    state: str
    max_model_len: int | None = Field(None, description="Of the base model")
    version: int = Field(0, description="Of an adapter of the registry")
    loaded_by_hand: bool = Field(False, description="Whether it is in no registry")


class ModelList(AnswerBody):
    """Answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelEntry]

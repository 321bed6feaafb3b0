"""Answers of the LoRAX dialect, for the OpenAPI document: fields without a default are always there."""

from __future__ import annotations

from pydantic import Field

from lorafleet_serving.api.openai_answers import AnswerBody


class LoraxError(AnswerBody):
    """An error of LoRAX's routes; its client raises by `error_type`."""

    error: str
    error_type: str


class AlternativeToken(AnswerBody):
    """A token that could have come instead."""

    id: int
    text: str
    logprob: float


class GeneratedToken(AlternativeToken):
    """A token of the answer."""

    special: bool
    skipped: bool
    alternative_tokens: list[AlternativeToken] = Field([], description="Only where they were asked for")


class PromptToken(AnswerBody):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None


class Ending(AnswerBody):
    """How an answer ended."""

    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    seed: int | None


class Details(Ending):
    """Everything about an answer."""

    skipped_tokens: int
    prefill: list[PromptToken]
    tokens: list[GeneratedToken]


class OtherSequence(Details):
    """An answer that `best_of` did not choose."""

    generated_text: str


class ChosenDetails(Details):
    """Everything about the answer that is given."""

    best_of_sequences: list[OtherSequence] = Field([], description="Only with best_of above 1")


class GeneratedEvent(AnswerBody):
    """Event of a streamed answer; the last one has the text and the details."""

    token: GeneratedToken
    generated_text: str | None
    details: Ending | None


class Generated(AnswerBody):
    """Answer of `/generate`."""

    generated_text: str
    details: ChosenDetails | None = Field(None, description="Only where they were asked for")


class Embedded(AnswerBody):
    """Answer of `/embed`."""

    embeddings: list[float]


class PlacedToken(AnswerBody):
    """A token of a text with its place, in characters."""

    id: int
    text: str
    start: int
    stop: int


class Info(AnswerBody):
    """Answer of `/info`."""

    model_id: str
    model_sha: str
    model_dtype: str
    model_device_type: str
    model_pipeline_tag: str
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_length: int
    max_total_tokens: int
    max_batch_total_tokens: int
    waiting_served_ratio: float
    max_waiting_tokens: int
    eager_prefill: bool
    validation_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    request_logger_url: str | None
    adapters_loaded_by_hand: list[str]

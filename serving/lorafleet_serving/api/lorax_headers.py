"""Headers of the LoRAX dialect: what was computed, by which model, and where the time went."""

from __future__ import annotations

from lorafleet_serving.api.answer import Answer
from lorafleet_serving.pod import Pod

_SOURCE = "mlflow"

MODEL_HEADERS = {
    "x-compute-type": "Kind of device that computed",
    "x-compute-characters": "Characters of the prompt",
    "x-model-id": "The base model",
}
"""Headers of every answer, and what they tell."""
ADAPTER_HEADERS = {"x-adapter-id": "The adapter that was asked for", "x-adapter-source": "Where it came from"}
"""Headers of an answer by an adapter."""
_TIMES = {
    "x-compute-time": "Milliseconds from the request to the last token",
    "x-total-time": "Milliseconds from the request to the last token",
    "x-validation-time": "Milliseconds before the engine took the request",
    "x-queue-time": "Milliseconds of waiting in the engine",
    "x-inference-time": "Milliseconds of computing",
    "x-time-per-token": "Milliseconds of computing by generated token",
    "x-time-to-first-token": "Milliseconds from the request to the first token",
    "x-time-per-output-token": "Milliseconds from token to token after the first",
}
_COUNTS = {
    "x-prompt-tokens": "Tokens of the prompt",
    "x-generated-tokens": "Tokens of the answer",
    "x-skipped-tokens": "Tokens of the prompt that were left out: always none",
    "x-total-tokens": "Tokens of prompt and answer",
}
TIMING_HEADERS = _TIMES | _COUNTS
"""Headers of an answer that had ended before it was sent."""


def model_headers(pod: Pod, answer: Answer, num_characters: int, adapter_id: str) -> dict[str, str]:
    """What is known when an answer begins; `adapter_id` is empty for the base model."""
    model = (pod.config.engine.device.partition(":")[0], str(num_characters), pod.config.base_id)
    headers = answer.headers | dict(zip(MODEL_HEADERS, model, strict=True))
    if adapter_id:
        headers |= dict(zip(ADAPTER_HEADERS, (adapter_id, _SOURCE), strict=True))
    return headers


def timing_headers(answer: Answer, num_tokens: int) -> dict[str, str]:
    """What is known when it has ended; times are in milliseconds."""
    timing = answer.timing
    inference_s = max(timing.total_s - timing.queue_s, 0.0)
    times = (
        timing.validation_s + timing.total_s,
        timing.validation_s + timing.total_s,
        timing.validation_s,
        timing.queue_s,
        inference_s,
        inference_s / max(num_tokens, 1),
        timing.validation_s + timing.first_token_s,
        max(timing.total_s - timing.first_token_s, 0.0) / max(num_tokens - 1, 1),
    )
    counts = (answer.num_prompt, num_tokens, 0, answer.num_prompt + num_tokens)
    return {
        **{name: f"{seconds * 1000:.3f}" for name, seconds in zip(_TIMES, times, strict=True)},
        **{name: str(count) for name, count in zip(_COUNTS, counts, strict=True)},
    }

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
TIMING_HEADERS = {
    "x-compute-time": "Milliseconds from the request to the last token",
    "x-total-time": "Milliseconds from the request to the last token",
    "x-validation-time": "Milliseconds before the engine took the request",
    "x-queue-time": "Milliseconds of waiting in the engine",
    "x-inference-time": "Milliseconds of computing",
    "x-time-per-token": "Milliseconds of computing by generated token",
    "x-time-to-first-token": "Milliseconds from the request to the first token",
    "x-time-per-output-token": "Milliseconds from token to token after the first",
    "x-prompt-tokens": "Tokens of the prompt",
    "x-generated-tokens": "Tokens of the answer",
    "x-skipped-tokens": "Tokens of the prompt that were left out: always none",
    "x-total-tokens": "Tokens of prompt and answer",
}
"""Headers of an answer that had ended before it was sent."""


def model_headers(pod: Pod, answer: Answer, num_characters: int, adapter_id: str) -> dict[str, str]:
    """What is known when an answer begins; `adapter_id` is empty for the base model."""
    headers = {
        **answer.headers,
        "x-compute-type": pod.config.engine.device.partition(":")[0],
        "x-compute-characters": str(num_characters),
        "x-model-id": pod.config.base_id,
    }
    if adapter_id:
        headers |= {"x-adapter-id": adapter_id, "x-adapter-source": _SOURCE}
    return headers


def timing_headers(answer: Answer, num_tokens: int) -> dict[str, str]:
    """What is known when it has ended; times are in milliseconds."""
    timing = answer.timing
    inference_s = max(timing.total_s - timing.queue_s, 0.0)
    times = {
        "x-compute-time": timing.validation_s + timing.total_s,
        "x-total-time": timing.validation_s + timing.total_s,
        "x-validation-time": timing.validation_s,
        "x-queue-time": timing.queue_s,
        "x-inference-time": inference_s,
        "x-time-per-token": inference_s / max(num_tokens, 1),
        "x-time-to-first-token": timing.validation_s + timing.first_token_s,
        "x-time-per-output-token": max(timing.total_s - timing.first_token_s, 0.0) / max(num_tokens - 1, 1),
    }
    counts = {
        "x-prompt-tokens": answer.num_prompt,
        "x-generated-tokens": num_tokens,
        "x-skipped-tokens": 0,
        "x-total-tokens": answer.num_prompt + num_tokens,
    }
    return {
        **{name: f"{seconds * 1000:.3f}" for name, seconds in times.items()},
        **{name: str(count) for name, count in counts.items()},
    }

"""Headers of the LoRAX dialect: what was computed, by which model, and where the time went."""

from __future__ import annotations

from lorafleet_serving.api.answer import Answer
from lorafleet_serving.pod import Pod

_SOURCE = "mlflow"


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


def timing_headers(answer: Answer, num_tokens: int, num_characters: int) -> dict[str, str]:
    """What is known when it has ended; times are in milliseconds."""
    timing = answer.timing
    inference_s = max(timing.total_s - timing.queue_s, 0.0)
    times = {
        "compute-time": timing.validation_s + timing.total_s,
        "total-time": timing.validation_s + timing.total_s,
        "validation-time": timing.validation_s,
        "queue-time": timing.queue_s,
        "inference-time": inference_s,
        "time-per-token": inference_s / max(num_tokens, 1),
        "time-to-first-token": timing.validation_s + timing.first_token_s,
        "time-per-output-token": max(timing.total_s - timing.first_token_s, 0.0) / max(num_tokens - 1, 1),
    }
    counts = {
        "compute-characters": num_characters,
        "prompt-tokens": answer.num_prompt,
        "generated-tokens": num_tokens,
        "skipped-tokens": 0,
        "total-tokens": answer.num_prompt + num_tokens,
    }
    return {
        **{f"x-{name}": f"{seconds * 1000:.3f}" for name, seconds in times.items()},
        **{f"x-{name}": str(count) for name, count in counts.items()},
    }

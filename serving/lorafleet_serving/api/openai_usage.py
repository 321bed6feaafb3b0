"""Counts of tokens, as the OpenAI dialect writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorafleet_serving.api.answer import Answer


def usage(answers: Sequence[Answer], answers_per_prompt: int) -> dict[str, Any]:
    """Of all answers to one request; a prompt is counted once, however many answers it gets."""
    firsts = answers[::answers_per_prompt]
    num_prompt, num_generated = sum(item.num_prompt for item in firsts), sum(item.num_tokens for item in answers)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "prompt_tokens_details": {"cached_tokens": sum(item.num_cached for item in firsts)},
    }

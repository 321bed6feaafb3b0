"""What goes into the engine and what comes out of it: requests, sampling settings, tokens.

Plain data, shared by the front process, the engine process and the evaluation harness. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lorafleet_serving.exceptions import InvalidRequest


class FinishReason(StrEnum):
    """Why a sequence ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"
    """A stop string was found; set by the front, which sees text."""
    ABORTED = "aborted"
    ERROR = "error"


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Defaults are greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    """Least probability of a token, as a share of the most likely one's."""
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their logits."""
    seed: int | None = None
    """Seed of the request's own random stream; None draws one."""
    ignore_eos: bool = False
    min_new_tokens: int = 0
    """Tokens before which neither the end token nor a stop token comes."""
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    """Number of alternatives reported beside the chosen token; None reports no log-probability."""

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _check("temperature", self.temperature, 0.0 <= self.temperature < float("inf"), "at least 0 and finite")
        _check("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1")
        _check("top_p", self.top_p, self.top_p is None or 0.0 < self.top_p <= 1.0, "above 0 and at most 1")
        _check("min_p", self.min_p, self.min_p is None or 0.0 <= self.min_p <= 1.0, "between 0 and 1")
        _check("typical_p", self.typical_p, self.typical_p is None or 0.0 < self.typical_p <= 1.0, "above 0, at most 1")
        for name in ("frequency_penalty", "presence_penalty"):
            _check(name, getattr(self, name), -2.0 <= getattr(self, name) <= 2.0, "between -2 and 2")
        biases = [bias for _, bias in self.logit_bias]
        _check("logit_bias", biases, all(-100.0 <= bias <= 100.0 for bias in biases), "from -100 to 100 for each token")
        least, most = self.min_new_tokens, self.max_new_tokens
        _check("min_tokens", least, 0 <= least <= most, f"between 0 and the most tokens, {most}")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0.0 < penalty < float("inf"), "above 0 and finite")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 2**64, "between 0 and 2**64 - 1")
        count = self.num_logprobs
        _check("num_logprobs", count, count is None or 0 <= count <= 20, "between 0 and 20")


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to generate. `adapter` is an adapter digest; None asks the base model."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural-log probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenOutput:
    """One step's result for one request: a new token, an end, or both."""

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    logprob: float | None = None
    alternatives: tuple[TokenLogprob, ...] = ()
    error: str | None = None
    """What went wrong, with finish reason `ERROR`."""


def _check(name: str, value: object, valid: bool, limit: str) -> None:
    if not valid:
        raise InvalidRequest(f"{name} is {value!r}, it must be {limit}", field=name)

"""What goes into the engine and what comes out of it: requests, sampling settings, tokens.

Plain data, shared by the front process, the engine process and the evaluation harness. No torch here.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from lorafleet_serving.engine.constraint import Constraint
from lorafleet_serving.exceptions import InvalidRequest


class FinishReason(StrEnum):
    """Why a sequence ended."""

    EOS = "eos"
    COMPLETE = "complete"
    """What the answer is bound to can only end here."""
    LENGTH = "length"
    STOP = "stop"
    """A stop string was found; set by the front, which sees text."""
    EMBEDDED = "embedded"
    """The vector of a prompt is made; nothing was to be generated."""
    ABORTED = "aborted"
    EXPIRED = "expired"
    """The request's deadline has passed."""
    ERROR = "error"


class Pooling(StrEnum):
    """How the rows of a prompt become one vector."""

    LAST = "last"
    """The last token's, which alone has seen the whole prompt."""
    MEAN = "mean"


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Defaults are greedy."""

    max_new_tokens: int = 128
    """0 reads the prompt and ends."""
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
    num_prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    constraint: Constraint | None = None
    """What the answer's text must fit. It ends where that says, before the least length if need be."""

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 0, "at least 0")
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
        _check("repetition_penalty", penalty, 0.01 <= penalty <= 100.0, "between 0.01 and 100")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 2**64, "between 0 and 2**64 - 1")
        for name in ("num_logprobs", "num_prompt_logprobs"):
            count = getattr(self, name)
            _check(name, count, count is None or 0 <= count <= 20, "between 0 and 20")


PRIORITIES = range(-2, 3)


@dataclass(frozen=True)
class Tenant:
    """Whom sequences are computed for: fairness is among tenants, by their weights."""

    name: str
    weight: float = 1.0
    max_waiting: int | None = None
    """Requests that may wait at a time; None leaves it to the pod's own limit."""


ANONYMOUS = Tenant("anonymous")
"""Everybody, where callers are not told apart."""


SHADOW = Tenant("shadow", weight=0.01, max_waiting=1)
"""Nobody: what is asked of shadows, and seen by no caller."""


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to compute. `adapter` is an adapter digest; None asks the base model."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None
    pooling: Pooling | None = None
    """Asks for one vector instead of tokens: the prompt's hidden states behind the final norm, pooled so."""
    tenant: Tenant = ANONYMOUS
    priority: int = 0
    """A higher one goes first; see the scheduler."""
    deadline: float | None = None
    """When to give up, on the clock of `time.monotonic`, which all processes of a machine share."""

    def __post_init__(self) -> None:
        limit = f"from {PRIORITIES.start} to {PRIORITIES.stop - 1}"
        _check("priority", self.priority, self.priority in PRIORITIES, limit)

    @property
    def generates(self) -> bool:
        """Whether tokens are asked for; else its prompt is read, and nothing more."""
        return self.pooling is None and self.sampling.max_new_tokens > 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its natural-log probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class ScoredToken:
    """A token of the prompt, by what the model thinks of it."""

    logprob: float | None
    """None for the first, before which there is nothing."""
    alternatives: tuple[TokenLogprob, ...] = ()


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
    error_field: str | None = None
    """Name of the request's field that is at fault; None where the request is not."""
    prompt: Sequence[ScoredToken] = ()
    """Where they were asked for, the prompt's tokens, with the first output."""
    num_cached: int | None = None
    """With the first output, how many tokens of the prompt came from the prefix cache."""
    queue_s: float | None = None
    """With the first output, how long the request waited before its prompt began."""
    vector: array[float] | None = None
    """In fp32 [hidden_size], with finish reason `EMBEDDED`."""


def _check(name: str, value: object, valid: bool, limit: str) -> None:
    if not valid:
        raise InvalidRequest(f"{name} is {value!r}, it must be {limit}", field=name)

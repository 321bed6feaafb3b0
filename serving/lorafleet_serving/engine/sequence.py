"""One request on its way through the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

from lorafleet_serving.engine.grammar import Grammar
from lorafleet_serving.engine.prompt_lookup import PromptLookup
from lorafleet_serving.engine.prompt_reading import PromptReading, reading_of
from lorafleet_serving.engine.request import GenerationRequest


class SequenceStatus(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False)
class Sequence:
    """Tokens of a request, and how far their keys and values are computed."""

    request: GenerationRequest
    arrival: int
    """Number of the request in order of arrival."""
    token_ids: list[int] = field(init=False)
    """Prompt and answer."""
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed: int = 0
    """Tokens at the front whose keys and values are in the cache."""
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Chained content hashes of the full blocks, as far as they were needed."""
    num_before: int = 0
    """Tokens that were computed for anybody before it came."""
    num_charged: int = 0
    """Tokens at the front that are on its tenant's account, or came from the prefix cache."""
    random: Random = field(init=False)
    """The request's own random stream: it does not depend on what else is in the batch."""
    reading: PromptReading | None = field(init=False)
    """What is read from the prompt's rows besides the next token."""
    arrived_at: float = field(default_factory=time.monotonic)
    admitted_at: float | None = None
    """When its first tokens were scheduled."""
    num_cached: int | None = None
    """Tokens whose keys and values were known when they were."""
    grammar: Grammar | None = None
    """Where the answer stands in what it is bound to; it goes on from there after a preemption."""
    lookup: PromptLookup | None = None
    """Guesses what it says next; None where nothing is guessed."""

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.random = Random(self.request.sampling.seed)
        self.reading = reading_of(self.request)

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.request.request_id

    @property
    def adapter(self) -> str | None:
        """Digest of the adapter; None for the base model."""
        return self.request.adapter

    @property
    def queue_s(self) -> float | None:
        """How long it waited before its prompt began."""
        return None if self.admitted_at is None else self.admitted_at - self.arrived_at

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.token_ids)

    @property
    def num_skippable(self) -> int:
        """Tokens at the front that need not be computed where their keys and values are known."""
        if self.reading is None or self.reading.is_complete:
            return self.num_tokens - 1
        return min(self.num_tokens - 1, self.reading.next_row)

    @property
    def num_remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled: 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_allowed(self) -> int:
        """Tokens that the answer may still get."""
        return self.request.sampling.max_new_tokens - self.num_generated

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

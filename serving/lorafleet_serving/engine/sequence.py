"""One request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random

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
    num_overtaken: int = 0
    """Later sequences that were admitted while this one waited for room for its adapter."""
    random: Random = field(init=False)
    """The request's own random stream: it does not depend on what else is in the batch."""

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.random = Random(self.request.sampling.seed)

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self.request.request_id

    @property
    def adapter(self) -> str | None:
        """Digest of the adapter; None for the base model."""
        return self.request.adapter

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.token_ids)

    @property
    def num_remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled: 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

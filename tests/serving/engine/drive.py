"""The scheduler with its real block manager and device slots, driven as the engine drives it, without a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch

from lorafleet_serving.adapters.slots import DeviceSlots
from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.prompt_lookup import PromptLookup
from lorafleet_serving.engine.request import ANONYMOUS, GenerationRequest, SamplingParams, Tenant
from lorafleet_serving.engine.scheduler import Scheduler
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from lorafleet_serving.kernels.lora_weights import LoraWeights

BLOCK = 4
ADAPTER_BYTES = 64


class Slots:
    """Device slots under the names of adapters."""

    def __init__(self, num_slots: int) -> None:
        self.tier = DeviceSlots(num_slots * ADAPTER_BYTES, torch.device("cpu"))

    def acquire(self, digest: str) -> bool:
        weights = AdapterWeights(digest, (LoraWeights(torch.zeros(1, ADAPTER_BYTES // 4), ()),))
        return self.tier.acquire(weights)

    def release(self, digest: str) -> None:
        self.tier.release(digest)


class SteadyPace(NamedTuple):
    """The same at every step."""

    most_tokens: int

    def num_tokens(self, num_decodes: int) -> int:
        return self.most_tokens


@dataclass
class Drive:
    """What the engine does around the scheduler, and what one step promises."""

    num_blocks: int = 16
    num_slots: int = 2
    max_num_seqs: int = 4
    max_batched_tokens: int = 8
    max_prefill_tokens: int = 8
    turn_steps: int = 2
    fairness_slack: int = 64
    priority_head_start: int = 256
    speculative_tokens: int = 0
    admitted: list[str] = field(default_factory=list)
    computed: Counter[str] = field(default_factory=Counter)
    """Tokens that were computed for each tenant, those that were computed again among them."""

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, BLOCK)
        self.slots = Slots(self.num_slots)
        self.scheduler = Scheduler(
            self.blocks,
            self.slots,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            pace=SteadyPace(self.max_prefill_tokens),
            adapter_turn_steps=self.turn_steps,
            fairness_slack=self.fairness_slack,
            priority_head_start=self.priority_head_start,
            most_guessing_rows=self.max_batched_tokens,
        )
        self.num_added = 0
        self.num_guessed_right = 0

    @property
    def num_preemptions(self) -> int:
        return self.scheduler.num_preemptions

    @property
    def is_idle(self) -> bool:
        return not self.scheduler.waiting and not self.scheduler.running

    def add(
        self,
        num_tokens: int,
        num_new: int = 4,
        adapter: str | None = None,
        first_token: int = 0,
        *,
        tenant: Tenant = ANONYMOUS,
        priority: int = 0,
    ) -> Sequence:
        prompt = tuple(range(first_token, first_token + num_tokens))
        sampling = SamplingParams(max_new_tokens=num_new)
        request = GenerationRequest(str(self.num_added), prompt, sampling, adapter, tenant=tenant, priority=priority)
        sequence = Sequence(request, self.num_added)
        if self.speculative_tokens:
            sequence.lookup = PromptLookup(self.speculative_tokens)
        self.num_added += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        running = list(self.scheduler.running)
        chunks = self.scheduler.schedule()
        self.check(chunks)
        self.admitted += [chunk.sequence.request_id for chunk in chunks if chunk.sequence not in running]
        for chunk in chunks:
            num_sampled = chunk.num_sampled
            self.computed[chunk.sequence.request.tenant.name] += chunk.num_tokens
            self.scheduler.keep(chunk.sequence, chunk.num_tokens)
            self.take_tokens(chunk, num_sampled)
        self.check_integrity()
        return chunks

    def take_tokens(self, chunk: Chunk, num_sampled: int) -> None:
        sequence = chunk.sequence
        for number in range(num_sampled):
            if sequence.num_generated + 1 >= sequence.request.sampling.max_new_tokens:
                self.scheduler.finish(sequence)
                return
            # The Thue-Morse sequence repeats itself all the time, and never for long: guesses are right and wrong.
            sequence.token_ids.append(1000 + sequence.num_generated.bit_count() % 2)
            if sequence.token_ids[-1] not in chunk.guess[number : number + 1]:
                return
            self.num_guessed_right += 1
            self.computed[sequence.request.tenant.name] += 1
            self.scheduler.keep(sequence, 1)

    def check(self, chunks: list[Chunk]) -> None:
        """The promises that one step makes."""
        assert chunks or self.is_idle, "nothing is scheduled while something waits"
        assert sum(chunk.num_rows for chunk in chunks) <= self.max_batched_tokens
        assert len({chunk.sequence.request_id for chunk in chunks}) == len(chunks)
        written: list[int] = []
        for chunk in chunks:
            sequence, num_rows = chunk.sequence, chunk.num_rows
            assert sequence.status is SequenceStatus.RUNNING
            assert self.scheduler.may_compute(sequence), "a sequence computes whose adapter is not on the device"
            assert chunk.num_tokens >= 1
            assert not chunk.guess or chunk.num_tokens == sequence.num_remaining == 1
            assert len(chunk.guess) < sequence.num_allowed or not chunk.guess
            assert sequence.num_computed + num_rows <= len(sequence.block_table) * BLOCK
            last = (sequence.num_computed + num_rows - 1) // BLOCK
            written += sequence.block_table[sequence.num_computed // BLOCK : last + 1]
        assert len(set(written)) == len(written), "two sequences write into one block"

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()
        self.slots.tier.check_integrity()

    def run(self, max_steps: int = 2000) -> int:
        for num_steps in range(max_steps):
            if self.is_idle:
                return num_steps
            self.step()
        pytest.fail(f"not done after {max_steps} steps")

    def check_empty(self) -> None:
        """Nothing is held by anybody."""
        assert self.is_idle
        assert self.blocks.num_free == self.num_blocks
        for index in range(self.num_slots):
            assert self.slots.acquire(f"new-{index}"), "an adapter is held by nobody"

"""Which sequences compute how many tokens in the next step.

One step mixes decodes and prefill chunks under a budget of tokens. Decodes go first, and while there are any, no more
is prefilled beside them than keeps the step short (`PrefillPace`).

A sequence that decodes may compute tokens that are only guessed behind its own, while the step is small. They are on
nobody's account unless they turn out right.

Prompts, begun or waiting, share what is left in the order of `FairShare`: the tenant for which the fewest tokens were
computed by its weight, of its adapters those served least, to within half of `fairness_slack`, of their sequences the
first. A level of priority counts as `priority_head_start` tokens of each. Counted is what was computed since somebody
was first kept waiting; what is had while nobody is, be it everything, is no debt. Four rules bound every wait:

- Whoever finds no place in the batch, or no blocks, while running sequences are more than `fairness_slack` tokens ahead
  of it, has one of those preempted in each step until it is admitted, and nobody overtakes it. So a tenant of weight 1
  that asks for little waits for its first token, behind others whose queues never end, while at most `fairness_slack` +
  its prompt + the head start of their priority, in new tokens, are computed for each unit of their weight, for at most
  two steps for each sequence of the batch, and for its pauses; and an adapter behind other adapters likewise.
- Where the adapters of the batch do not all fit on the device they take turns: a sequence in the batch pauses between
  two turns for no longer than `AdapterTurns` says.
- When blocks run out for those that decode, the sequence whose turn would be last gives back its own: one of the
  lowest priority, of a tenant and adapter served most, the last arrived. It is computed again later, at no charge.
- What runs goes on unless it is preempted so: the least served of all never is.
"""

from __future__ import annotations

import time
from bisect import insort
from typing import Protocol

from lorafleet_serving.engine.adapter_turns import AdapterTurns, Residency
from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.fair_share import FairShare
from lorafleet_serving.engine.prefill_pace import FEWEST_TOKENS
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from lorafleet_serving.engine.waiting_queue import WaitingQueue


class Pace(Protocol):
    """Keeps steps short."""

    def num_tokens(self, num_decodes: int) -> int:
        """How many tokens of prompts the next step may take beside decodes, at least one."""
        ...


class Scheduler:
    """Waiting and running sequences."""

    def __init__(
        self,
        blocks: BlockManager,
        residency: Residency,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        pace: Pace,
        adapter_turn_steps: int,
        fairness_slack: int,
        priority_head_start: int,
        most_guessing_rows: int = 0,
    ) -> None:
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._pace = pace
        self._slack = fairness_slack
        self._most_guessing_rows = most_guessing_rows
        # Half of what is borne before anybody is preempted, so that order mends most of it without.
        self._shares = FairShare(priority_head_start, adapter_grain=fairness_slack // 2)
        self._turns = AdapterTurns(residency, adapter_turn_steps)
        self.refused: Sequence | None = None
        """The one whose turn it was in the last step, and that found no place or no blocks; nobody was tried after."""
        self.waiting = WaitingQueue(self._shares)
        self.running: list[Sequence] = []
        """In order of arrival."""
        self.num_preemptions = 0
        self.num_decoding = 0
        """Sequences that only go on with their answers, in the step that was last planned."""

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._shares.ask(sequence)
        self.waiting.add(sequence)

    def schedule(self) -> list[Chunk]:
        """Choose the chunks of the next step; empty only if nothing is left or nothing can be admitted."""
        self._shares.begin_step()
        self._make_way()
        self.refused = None
        chunks: list[Chunk] = []
        # A second time, where all that had their turn lost their blocks: then others have theirs.
        while not chunks and (self.running or (self.waiting and self.refused is None)):
            self._turns.begin_step()
            chunks = self._schedule_step()
        return chunks

    def _schedule_step(self) -> list[Chunk]:
        chunks = self._schedule_decodes()
        budget = self._max_batched_tokens - sum(chunk.num_rows for chunk in chunks)
        self.num_decoding = len(chunks)
        if chunks:
            budget = min(budget, self._pace.num_tokens(len(chunks)))
        return chunks + self._schedule_prefills(budget)

    def keep(self, sequence: Sequence, num_tokens: int) -> None:
        """The next tokens of a sequence have been computed, guesses that were right among them."""
        self._shares.charge(sequence, num_tokens)
        sequence.num_computed += num_tokens
        self._blocks.remember(sequence, num_tokens)

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """End a sequence and take back all it holds; with `forget`, its blocks are not shared from now on."""
        running = sequence.status is SequenceStatus.RUNNING
        self._shares.leave(sequence, running=running)
        if running:
            self.running.remove(sequence)
            self._give_back(sequence, forget=forget)
        else:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED

    @property
    def num_pauses(self) -> int:
        """Times that an adapter of the batch had to leave the device for another."""
        return self._turns.num_pauses

    def may_compute(self, sequence: Sequence) -> bool:
        """Whether the sequence's adapter is on the device in this step."""
        return self._turns.has(sequence.adapter)

    def check_integrity(self) -> None:
        """Check that every sequence is where its status says, and the blocks and accounts add up."""
        for queue, status in ((self.waiting, SequenceStatus.WAITING), (self.running, SequenceStatus.RUNNING)):
            assert all(sequence.status is status for sequence in queue), f"a sequence among {status} has another status"
        assert self.running == sorted(self.running, key=_arrival), "the running sequences are out of order"
        assert all(not sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        assert len(self.running) <= self._max_num_seqs, "more sequences run than may"
        self.waiting.check_integrity()
        self._turns.check_integrity(self.running)
        self._shares.check_integrity(self.waiting, self.running)
        self._blocks.check_integrity(self.running)

    def _make_way(self) -> None:
        """Preempt a sequence for one that was refused in the last step, if that has fallen too far behind."""
        refused = self.refused
        if refused is not None and refused.status is SequenceStatus.WAITING:
            ahead = [other for other in self.running if self._shares.lead(other, refused) > self._slack]
            if ahead:
                self._preempt(self._shares.last(ahead))

    def _schedule_decodes(self) -> list[Chunk]:
        decoding: dict[Sequence, None] = {}
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING or sequence.num_remaining != 1:
                continue
            if not self._turns.has(sequence.adapter):
                continue
            while not self._blocks.append(sequence):
                victim = self._shares.last(self.running)
                self._preempt(victim)
                decoding.pop(victim, None)
                if victim is sequence:
                    break
            else:
                decoding[sequence] = None
        for sequence in decoding:
            self._shares.charge(sequence, 1)
        return self._with_guesses(list(decoding))

    def _with_guesses(self, decoding: list[Sequence]) -> list[Chunk]:
        """Chunks of sequences that decode, with guesses while the step stays small enough for them to cost little."""
        has_prompts = bool(self.waiting) or any(sequence.num_remaining > 1 for sequence in self.running)
        most_rows = self._max_batched_tokens - (FEWEST_TOKENS if has_prompts else 0)
        room = min(self._most_guessing_rows, most_rows) - len(decoding)
        chunks: list[Chunk] = []
        for sequence in decoding:
            guess: tuple[int, ...] = ()
            if sequence.lookup is not None and room > 0:
                # Only into blocks that it holds: a guess never costs anybody a block.
                most = min(room, sequence.num_allowed - 1, self._blocks.num_spare(sequence))
                guess = sequence.lookup.guess(sequence.token_ids, most)
                room -= len(guess)
            chunks.append(Chunk(sequence, 1, guess))
        return chunks

    def _schedule_prefills(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        begun = [item for item in self.running if item.num_remaining > 1 and self._turns.has(item.adapter)]
        while budget > 0 and (candidates := [*begun, *self._admissible()]):
            sequence = self._shares.first(candidates)
            if sequence.status is SequenceStatus.RUNNING:
                begun.remove(sequence)
            elif not self._admit(sequence) or not self._turns.has(sequence.adapter):
                continue
            chunks.append(Chunk(sequence, min(sequence.num_remaining, budget)))
            if chunks[-1].num_tokens < sequence.num_remaining:
                begun.append(sequence)  # That was all there was.
            self._shares.charge(sequence, chunks[-1].num_tokens)
            budget -= chunks[-1].num_tokens
        left = [*begun, *self.waiting.heads()]
        if self._is_full and left and (first := self._shares.first(left)).status is SequenceStatus.WAITING:
            self.refused = first
        self._shares.end_step(left)
        return chunks

    def _admissible(self) -> list[Sequence]:
        """The waiting sequences that may be tried now."""
        return [] if self._is_full or self.refused is not None else self.waiting.heads()

    def _admit(self, sequence: Sequence) -> bool:
        """Have a sequence run, or refuse it."""
        # A block in reserve for each running sequence, so that an admission does not soon cost a preemption.
        if not self._blocks.allocate(sequence, num_reserved=len(self.running)):
            self.refused = sequence
            return False
        self.waiting.remove(sequence)
        self._start(sequence)
        return True

    @property
    def _is_full(self) -> bool:
        return len(self.running) >= self._max_num_seqs

    def _start(self, sequence: Sequence) -> None:
        self._shares.admit(sequence)
        self._turns.enter(sequence)
        sequence.status = SequenceStatus.RUNNING
        if sequence.admitted_at is None:
            sequence.admitted_at, sequence.num_cached = time.monotonic(), sequence.num_computed
        insort(self.running, sequence, key=_arrival)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.status = SequenceStatus.WAITING
        self._shares.preempt(sequence)
        self.waiting.add(sequence)
        self.num_preemptions += 1

    def _give_back(self, sequence: Sequence, *, forget: bool = False) -> None:
        self._blocks.free(sequence, forget=forget)
        self._turns.leave(sequence)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival

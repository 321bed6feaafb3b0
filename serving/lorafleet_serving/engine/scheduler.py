"""Which sequences compute how many tokens in the next step.

One step mixes decodes and prefill chunks under a budget of tokens. Decodes go first, and while there are any, no more
is prefilled beside them than keeps the step short (`PrefillPace`).

A sequence that decodes may compute tokens that are only guessed behind its own, while the step is small. They are on
nobody's account unless they turn out right.

Prompts, begun or waiting, share what is left in the order of `FairShare`: the tenant for which the fewest tokens were
computed by its weight, of its adapters those served least, to within half of `fairness_slack`, of their sequences the
first. A level of priority counts as `priority_head_start` tokens of each. Four rules bound every wait:

- Whoever finds no place in the batch, no blocks, or no room for its adapter, while running sequences are more than
  `fairness_slack` tokens ahead of it, has one of those preempted in each step until it is admitted. So a tenant of
  weight 1 that asks for little waits for its first token, behind others whose queues never end, while at most
  `fairness_slack` + its prompt + the head start of their priority, in new tokens, are computed for each unit of their
  weight, and for at most two steps for each sequence of the batch; and an adapter behind other adapters likewise.
- For lack of blocks or of a place nobody overtakes. A sequence whose adapter finds no room is overtaken by at most
  `max_overtakes` others, and by none that is `fairness_slack` ahead of it.
- When blocks run out for those that decode, the sequence whose turn would be last gives back its own: one of the
  lowest priority, of a tenant and adapter served most, the last arrived. It is computed again later, at no charge.
- What runs goes on unless it is preempted so: the least served of all never is.
"""

from __future__ import annotations

import time
from bisect import insort
from typing import NamedTuple, Protocol

from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.fair_share import FairShare
from lorafleet_serving.engine.prefill_pace import FEWEST_TOKENS
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from lorafleet_serving.engine.waiting_queue import WaitingQueue


class Residency(Protocol):
    """Holds adapters on the device while sequences run."""

    def acquire(self, digest: str) -> bool:
        """Make an adapter resident and hold it; False while there is no room."""
        ...

    def release(self, digest: str) -> None:
        """Give back one hold."""
        ...


class Pace(Protocol):
    """Keeps steps short."""

    def num_tokens(self, num_decodes: int) -> int:
        """How many tokens of prompts the next step may take beside decodes, at least one."""
        ...


class _Refusal(NamedTuple):
    """A sequence whose turn it was, and that could not be admitted."""

    sequence: Sequence
    lacks_room: bool
    """Whether what it lacks is room for its adapter; else it is a place in the batch, or blocks."""


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
        max_overtakes: int,
        fairness_slack: int,
        priority_head_start: int,
        most_guessing_rows: int = 0,
    ) -> None:
        self._blocks = blocks
        self._residency = residency
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._pace = pace
        self._max_overtakes = max_overtakes
        self._slack = fairness_slack
        self._most_guessing_rows = most_guessing_rows
        # Half of what is borne before anybody is preempted, so that order mends most of it without.
        self._shares = FairShare(priority_head_start, adapter_grain=fairness_slack // 2)
        self._refusals: list[_Refusal] = []
        """Those of the last step, in order; behind one that lacks anything but room nobody was tried."""
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
        self._make_way()
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

    def check_integrity(self) -> None:
        """Check that every sequence is where its status says, and the blocks and accounts add up."""
        for queue, status in ((self.waiting, SequenceStatus.WAITING), (self.running, SequenceStatus.RUNNING)):
            assert all(sequence.status is status for sequence in queue), f"a sequence among {status} has another status"
        assert self.running == sorted(self.running, key=_arrival), "the running sequences are out of order"
        assert all(not sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        assert len(self.running) <= self._max_num_seqs, "more sequences run than may"
        self.waiting.check_integrity(self._max_overtakes)
        self._shares.check_integrity(self.waiting, self.running)
        self._blocks.check_integrity(self.running)

    def _make_way(self) -> None:
        """Preempt a sequence for one that was refused in the last step, if that has fallen too far behind."""
        refusals, self._refusals = self._refusals, []
        for sequence, lacks_room in refusals:
            if sequence.status is not SequenceStatus.WAITING:
                continue
            ahead = [other for other in self.running if self._is_ahead(other, sequence)]
            if lacks_room:
                # Room comes free only with an adapter that none of the others holds.
                kept = {None, *(other.adapter for other in self.running if other not in ahead)}
                ahead = [other for other in ahead if other.adapter not in kept]
            if ahead:
                self._preempt(self._shares.last(ahead))
                return

    def _schedule_decodes(self) -> list[Chunk]:
        decoding: dict[Sequence, None] = {}
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING or sequence.num_remaining != 1:
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
        begun = [sequence for sequence in self.running if sequence.num_remaining > 1]
        while budget > 0 and (candidates := [*begun, *self._admissible()]):
            sequence = self._shares.first(candidates)
            if sequence.status is SequenceStatus.RUNNING:
                begun.remove(sequence)
            elif not self._admit(sequence):
                continue
            chunks.append(Chunk(sequence, min(sequence.num_remaining, budget)))
            self._shares.charge(sequence, chunks[-1].num_tokens)
            budget -= chunks[-1].num_tokens
        if self._is_full and self.waiting:
            self._refusals.append(_Refusal(self._shares.first(self.waiting.heads()), lacks_room=False))
        return chunks

    def _admissible(self) -> list[Sequence]:
        """The waiting sequences that may be tried now."""
        if self._is_full or any(not refusal.lacks_room for refusal in self._refusals):
            return []
        blocked = [refusal.sequence for refusal in self._refusals]
        return [head for head in self.waiting.heads() if head not in blocked]

    def _admit(self, sequence: Sequence) -> bool:
        """Have a sequence run, or refuse it."""
        blocked = [refusal.sequence for refusal in self._refusals]
        if any(self._holds_up(other, sequence) for other in blocked):
            self._refusals.append(_Refusal(sequence, lacks_room=False))
            return False
        if sequence.adapter is not None and not self._residency.acquire(sequence.adapter):
            self._refusals.append(_Refusal(sequence, lacks_room=True))
            return False
        # A block in reserve for each running sequence, so that an admission does not soon cost a preemption.
        if not self._blocks.allocate(sequence, num_reserved=len(self.running)):
            self._release(sequence)
            self._refusals.append(_Refusal(sequence, lacks_room=False))
            return False
        self.waiting.remove(sequence)
        self.waiting.overtake(blocked, sequence)
        self._start(sequence)
        return True

    @property
    def _is_full(self) -> bool:
        return len(self.running) >= self._max_num_seqs

    def _holds_up(self, blocked: Sequence, sequence: Sequence) -> bool:
        return self.waiting.num_overtaken(blocked) >= self._max_overtakes or self._is_ahead(sequence, blocked)

    def _is_ahead(self, sequence: Sequence, other: Sequence) -> bool:
        return self._shares.lead(sequence, other) > self._slack

    def _start(self, sequence: Sequence) -> None:
        self._shares.admit(sequence)
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
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.adapter is not None:
            self._residency.release(sequence.adapter)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival

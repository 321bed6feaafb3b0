"""Which sequences compute how many tokens in the next step.

One step mixes decodes and prefill chunks under a budget of tokens. Requests are admitted in order
of arrival. One whose adapter finds no room on the device is overtaken, but only by a bounded number
of later ones; then nothing is admitted before it, the running ones end, and room comes free. When
blocks run out, the sequence that arrived last gives back its own and is computed again later.
"""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple, Protocol

from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus


class Chunk(NamedTuple):
    """A sequence and how many of its tokens are computed in the step."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the sequence's end, so that a token follows."""
        return self.num_tokens == self.sequence.num_remaining


class Residency(Protocol):
    """Holds adapters on the device while sequences run."""

    def acquire(self, digest: str) -> bool:
        """Make an adapter resident and hold it; False while there is no room."""
        ...

    def release(self, digest: str) -> None:
        """Give back one hold."""
        ...


class Scheduler:
    """Waiting and running sequences, both in order of arrival."""

    def __init__(
        self,
        blocks: BlockManager,
        residency: Residency,
        *,
        max_num_seqs: int,
        max_batched_tokens: int,
        max_overtakes: int,
    ) -> None:
        self._blocks = blocks
        self._residency = residency
        self._max_num_seqs = max_num_seqs
        self._max_batched_tokens = max_batched_tokens
        self._max_overtakes = max_overtakes
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, sequence, key=_arrival)

    def schedule(self) -> list[Chunk]:
        """Choose the chunks of the next step; empty only if nothing is left or nothing can be admitted."""
        chunks = self._schedule_decodes()
        budget = self._max_batched_tokens - len(chunks)
        chunks += self._schedule_prefills(budget)
        budget = self._max_batched_tokens - sum(chunk.num_tokens for chunk in chunks)
        return chunks + self._admit(budget)

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """End a sequence and take back all it holds; with `forget`, its blocks are not shared from now on."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self._give_back(sequence, forget=forget)
        else:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED

    def check_integrity(self) -> None:
        """Check that every sequence is where its status says, and the blocks add up."""
        for queue, status in ((self.waiting, SequenceStatus.WAITING), (self.running, SequenceStatus.RUNNING)):
            assert all(sequence.status is status for sequence in queue), f"a sequence among {status} has another status"
            assert queue == sorted(queue, key=_arrival), f"sequences {status} are out of order"
        assert all(not sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        assert len(self.running) <= self._max_num_seqs, "more sequences run than may"
        assert all(sequence.num_overtaken <= self._max_overtakes for sequence in self.waiting), "a sequence starves"
        self._blocks.check_integrity(self.running)

    def _schedule_decodes(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in list(self.running):
            if sequence.status is not SequenceStatus.RUNNING or sequence.num_remaining != 1:
                continue
            while not self._blocks.append(sequence):
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                chunks.append(Chunk(sequence, 1))
        return chunks

    def _schedule_prefills(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in self.running:
            if sequence.num_remaining > 1 and budget > 0:
                chunks.append(Chunk(sequence, min(sequence.num_remaining, budget)))
                budget -= chunks[-1].num_tokens
        return chunks

    def _admit(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        blocked: list[Sequence] = []
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= self._max_num_seqs:
                break
            if any(other.num_overtaken >= self._max_overtakes for other in blocked):
                break
            if sequence.adapter is not None and not self._residency.acquire(sequence.adapter):
                blocked.append(sequence)
                continue
            # A block in reserve for each running sequence, so that an admission does not soon cost a preemption.
            if not self._blocks.allocate(sequence, num_reserved=len(self.running)):
                self._release(sequence)
                break
            for other in blocked:
                other.num_overtaken += 1
            self._start(sequence)
            chunks.append(Chunk(sequence, min(sequence.num_remaining, budget)))
            budget -= chunks[-1].num_tokens
        return chunks

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        sequence.status = SequenceStatus.RUNNING
        sequence.num_overtaken = 0
        insort(self.running, sequence, key=_arrival)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.status = SequenceStatus.WAITING
        self.add(sequence)

    def _give_back(self, sequence: Sequence, *, forget: bool = False) -> None:
        self._blocks.free(sequence, forget=forget)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.adapter is not None:
            self._residency.release(sequence.adapter)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival

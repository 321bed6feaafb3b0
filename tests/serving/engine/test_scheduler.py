"""The scheduler with its real block manager and device slots, driven as the engine drives it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from lorafleet_serving.adapters.slots import DeviceSlots
from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from lorafleet_serving.engine.scheduler import Chunk, Scheduler
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from lorafleet_serving.kernels.segments import LoraWeights

BLOCK = 4
ADAPTER_BYTES = 64


def make_weights(digest: str, num_bytes: int = ADAPTER_BYTES) -> AdapterWeights:
    return AdapterWeights(digest, (LoraWeights(torch.zeros(1, num_bytes // 4), ()),))


class Slots:
    """Device slots under the names of adapters."""

    def __init__(self, num_slots: int) -> None:
        self.tier = DeviceSlots(num_slots * ADAPTER_BYTES, torch.device("cpu"))

    def acquire(self, digest: str) -> bool:
        return self.tier.acquire(make_weights(digest))

    def release(self, digest: str) -> None:
        self.tier.release(digest)


@dataclass
class Drive:
    """What the engine does around the scheduler, without a model."""

    num_blocks: int = 16
    num_slots: int = 2
    max_num_seqs: int = 4
    max_batched_tokens: int = 8
    max_overtakes: int = 3
    admitted: list[str] = field(default_factory=list)
    num_preempted: int = 0

    def __post_init__(self) -> None:
        self.blocks = BlockManager(self.num_blocks, BLOCK)
        self.slots = Slots(self.num_slots)
        self.scheduler = Scheduler(
            self.blocks,
            self.slots,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            max_overtakes=self.max_overtakes,
        )
        self.num_added = 0

    def add(self, num_tokens: int, num_new: int = 4, adapter: str | None = None, first_token: int = 0) -> Sequence:
        prompt = tuple(range(first_token, first_token + num_tokens))
        sampling = SamplingParams(max_new_tokens=num_new)
        request = GenerationRequest(str(self.num_added), prompt, sampling, adapter)
        sequence = Sequence(request, self.num_added)
        self.num_added += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Chunk]:
        running = list(self.scheduler.running)
        chunks = self.scheduler.schedule()
        self.check(chunks)
        self.num_preempted += sum(sequence.status is SequenceStatus.WAITING for sequence in running)
        self.admitted += [sequence.request_id for sequence, _ in chunks if sequence not in running]
        for chunk in chunks:
            sequence, num_tokens = chunk
            samples = chunk.samples
            sequence.num_computed += num_tokens
            self.blocks.remember(sequence, num_tokens)
            if samples:
                self.take_token(sequence)
        self.scheduler.check_integrity()
        self.slots.tier.check_integrity()
        return chunks

    def take_token(self, sequence: Sequence) -> None:
        if sequence.num_generated + 1 >= sequence.request.sampling.max_new_tokens:
            self.scheduler.finish(sequence)
        else:
            sequence.token_ids.append(1000 + sequence.num_generated)

    def check(self, chunks: list[Chunk]) -> None:
        """The promises that one step makes."""
        assert sum(num_tokens for _, num_tokens in chunks) <= self.max_batched_tokens
        assert len({sequence.request_id for sequence, _ in chunks}) == len(chunks)
        written: list[int] = []
        for sequence, num_tokens in chunks:
            assert num_tokens >= 1
            assert sequence.num_computed + num_tokens <= len(sequence.block_table) * BLOCK
            last = (sequence.num_computed + num_tokens - 1) // BLOCK
            written += sequence.block_table[sequence.num_computed // BLOCK : last + 1]
        assert len(set(written)) == len(written), "two sequences write into one block"

    def run(self, max_steps: int = 2000) -> int:
        for num_steps in range(max_steps):
            if not self.scheduler.waiting and not self.scheduler.running:
                return num_steps
            assert self.step(), "nothing is scheduled while something waits"
        pytest.fail(f"not done after {max_steps} steps")


def test_long_prompt_is_cut_into_chunks_of_the_token_budget() -> None:
    drive = Drive()
    drive.add(20)
    assert [drive.step()[0].num_tokens for _ in range(3)] == [8, 8, 4]


def test_decodes_go_on_while_a_long_prompt_is_prefilled() -> None:
    drive = Drive()
    short = drive.add(3, num_new=10)
    drive.step()
    long = drive.add(20, first_token=100)
    for _ in range(2):
        tokens = {chunk.sequence: chunk.num_tokens for chunk in drive.step()}
        assert tokens == {short: 1, long: 7}


def test_requests_are_admitted_in_order_of_arrival() -> None:
    drive = Drive(max_num_seqs=1)
    for index in range(4):
        drive.add(5, num_new=1, first_token=10 * index)
    drive.run()
    assert drive.admitted == ["0", "1", "2", "3"]


def test_last_arrived_sequence_is_preempted_when_blocks_run_out() -> None:
    drive = Drive(num_blocks=5)
    first, second = drive.add(7, num_new=12), drive.add(7, num_new=12, first_token=100)
    while drive.num_preempted == 0:
        drive.step()
    assert first.status is SequenceStatus.RUNNING
    assert second.status is SequenceStatus.WAITING
    assert second.num_generated > 0
    drive.run()


def test_preempted_sequence_keeps_its_prefix() -> None:
    drive = Drive(num_blocks=6, max_batched_tokens=16)
    drive.add(7, num_new=14)
    second = drive.add(7, num_new=14, first_token=100)
    while drive.num_preempted == 0:
        drive.step()
    tokens = list(second.token_ids)
    drive.run()
    assert second.token_ids[: len(tokens)] == tokens
    assert second.num_generated == 13


def test_preempted_sequence_goes_before_later_arrivals() -> None:
    drive = Drive(num_blocks=5)
    drive.add(7, num_new=12)
    second = drive.add(7, num_new=12, first_token=100)
    while second.status is SequenceStatus.RUNNING or second.num_generated == 0:
        drive.step()
    drive.add(2, num_new=1, first_token=200)
    drive.run()
    assert drive.admitted[-2:] == ["1", "2"]


def test_adapter_without_room_is_overtaken_a_bounded_number_of_times() -> None:
    drive = Drive(num_slots=1, max_num_seqs=2, max_overtakes=3, num_blocks=64)
    drive.add(2, num_new=40, adapter="a")
    drive.add(2, num_new=1, adapter="b", first_token=50)
    for index in range(8):
        drive.add(2, num_new=1, adapter="a", first_token=100 + 10 * index)
    drive.run()
    assert drive.admitted.index("1") == 4
    assert drive.admitted[1:4] == ["2", "3", "4"]


def test_base_requests_overtake_an_adapter_that_waits_for_room() -> None:
    drive = Drive(num_slots=1)
    drive.add(2, num_new=20, adapter="a")
    drive.add(2, num_new=1, adapter="b")
    drive.add(2, num_new=1)
    drive.step()
    assert drive.admitted == ["0", "2"]


def test_aborted_sequence_gives_back_everything() -> None:
    drive = Drive()
    running, waiting = drive.add(6, adapter="a"), drive.add(20, adapter="b")
    drive.step()
    drive.scheduler.finish(running)
    drive.scheduler.finish(waiting)
    drive.scheduler.check_integrity()
    assert drive.blocks.num_free == drive.num_blocks
    assert drive.slots.acquire("c")
    assert drive.slots.acquire("d")


request_strategy = st.tuples(
    st.integers(1, 24),  # prompt
    st.integers(1, 8),  # answer
    st.sampled_from([None, "a", "b", "c", "d"]),
    st.sampled_from([0, 0, 100, 200]),  # equal beginnings happen
    st.integers(0, 6),  # steps before it arrives
    st.sampled_from([None, None, None, 0, 2, 5]),  # steps before it is aborted
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    requests=st.lists(request_strategy, min_size=1, max_size=14),
    num_blocks=st.integers(8, 20),
    num_slots=st.integers(1, 3),
    max_num_seqs=st.integers(1, 5),
    max_overtakes=st.integers(0, 3),
)
def test_every_request_ends_and_nothing_leaks(
    requests: list[tuple[int, int, str | None, int, int, int | None]],
    num_blocks: int,
    num_slots: int,
    max_num_seqs: int,
    max_overtakes: int,
) -> None:
    drive = Drive(num_blocks, num_slots, max_num_seqs, max_overtakes=max_overtakes)
    aborts: list[tuple[int, Sequence]] = []
    now = 0
    for num_tokens, num_new, adapter, first_token, delay, abort_after in requests:
        for _ in range(delay):
            now += 1
            if drive.scheduler.waiting or drive.scheduler.running:
                drive.step()
        sequence = drive.add(num_tokens, num_new, adapter, first_token)
        if abort_after is not None:
            aborts.append((now + abort_after, sequence))
        for due, aborted in aborts:
            if due <= now and aborted.status is not SequenceStatus.FINISHED:
                drive.scheduler.finish(aborted)
    drive.run()
    assert drive.blocks.num_free == num_blocks
    for index in range(num_slots):
        assert drive.slots.acquire(f"new-{index}"), "an adapter is held by nobody"

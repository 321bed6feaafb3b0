"""The scheduler with its real block manager and device slots, driven as the engine drives it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from lorafleet_serving.engine.request import Tenant
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from tests.serving.engine.drive import Drive


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
    while drive.num_preemptions == 0:
        drive.step()
    assert first.status is SequenceStatus.RUNNING
    assert second.status is SequenceStatus.WAITING
    assert second.num_generated > 0
    drive.run()


def test_preempted_sequence_keeps_its_prefix() -> None:
    drive = Drive(num_blocks=6, max_batched_tokens=16)
    drive.add(7, num_new=14)
    second = drive.add(7, num_new=14, first_token=100)
    while drive.num_preemptions == 0:
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


def test_higher_priority_goes_first() -> None:
    drive = Drive(max_num_seqs=1)
    drive.add(5, num_new=1)
    for priority in (-1, 0, 2, 0):
        drive.add(5, num_new=1, first_token=100 + drive.num_added, priority=priority)
    drive.run()
    assert drive.admitted == ["3", "0", "2", "4", "1"]


def test_lower_priority_waits_no_longer_than_the_head_start() -> None:
    drive = Drive(max_num_seqs=1, priority_head_start=50)
    low = drive.add(5, num_new=1, priority=0)
    num_before = 0
    while low.status is SequenceStatus.WAITING:
        drive.add(5, num_new=1, first_token=100 * drive.num_added, priority=1)
        num_before += sum(chunk.num_tokens for chunk in drive.step() if chunk.sequence is not low)
    assert 50 <= num_before <= 60


def test_higher_priority_has_a_running_one_of_a_lower_preempted() -> None:
    drive = Drive(max_num_seqs=1, num_blocks=64)
    low = drive.add(5, num_new=100, priority=-2)
    drive.step()
    high = drive.add(5, num_new=2, first_token=100, priority=2)
    drive.step()
    drive.step()
    assert (low.status, high.status) == (SequenceStatus.WAITING, SequenceStatus.RUNNING)
    drive.run()
    assert low.num_generated == 99


def test_lowest_priority_is_preempted_when_blocks_run_out() -> None:
    drive = Drive(num_blocks=5)
    low = drive.add(7, num_new=12, priority=-1)
    high = drive.add(7, num_new=12, first_token=100)
    while drive.num_preemptions == 0:
        drive.step()
    assert (low.status, high.status) == (SequenceStatus.WAITING, SequenceStatus.RUNNING)
    drive.run()


def test_prompts_are_prefilled_no_faster_than_the_pace_beside_decodes() -> None:
    drive = Drive(max_prefill_tokens=2)
    short = drive.add(3, num_new=4)
    drive.step()
    long = drive.add(20, first_token=100)
    steps = [{chunk.sequence: chunk.num_tokens for chunk in drive.step()} for _ in range(4)]
    assert steps == [{short: 1, long: 2}] * 3 + [{long: 8}]


def test_tenants_share_the_prefill_budget() -> None:
    drive = Drive(num_blocks=64)
    for number in range(3):
        drive.add(40, num_new=1, first_token=100 * number, tenant=Tenant("greedy"))
    drive.step()
    other = drive.add(6, num_new=1, first_token=900, tenant=Tenant("other"))
    drive.step()
    drive.step()
    assert other.status is SequenceStatus.FINISHED


def test_adapters_that_do_not_fit_together_take_turns() -> None:
    drive = Drive(num_slots=1, max_num_seqs=3, turn_steps=3, num_blocks=64)
    for index, adapter in enumerate("abc"):
        drive.add(2, num_new=8, adapter=adapter, first_token=50 * index)
    computed = [{chunk.sequence.adapter for chunk in drive.step()} for _ in range(18)]
    assert computed == [{"a"}] * 3 + [{"b"}] * 3 + [{"c"}] * 3 + [{"a"}] * 3 + [{"b"}] * 3 + [{"c"}] * 3
    assert drive.num_preemptions == 0


def test_an_adapter_that_is_done_makes_way_at_once() -> None:
    drive = Drive(num_slots=1, turn_steps=100, num_blocks=64)
    drive.add(2, num_new=3, adapter="a")
    drive.add(2, num_new=3, adapter="b", first_token=50)
    assert [next(iter(drive.step())).sequence.adapter for _ in range(6)] == ["a"] * 3 + ["b"] * 3


def test_one_that_comes_later_ends_no_turn_in_a_step_that_is_planned() -> None:
    drive = Drive(num_slots=1, turn_steps=2, num_blocks=64)
    drive.add(2, num_new=20, adapter="a")
    for _ in range(6):
        drive.step()
    drive.add(2, num_new=20, adapter="b", first_token=50)
    assert {chunk.sequence.adapter for chunk in drive.step()} == {"a"}
    assert {chunk.sequence.adapter for chunk in drive.step()} == {"b"}


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_who_names_more_adapters_gets_no_more_of_the_device(weight: float) -> None:
    drive = Drive(num_slots=1, turn_steps=2, num_blocks=400, max_num_seqs=16)
    many = [drive.add(2, 100, f"many-{n}", 100 * n, tenant=Tenant("many")) for n in range(8)]
    one = drive.add(2, 500, "one", 5000, tenant=Tenant("one", weight))
    for _ in range(400):
        drive.step()
    ratio = one.num_charged / sum(sequence.num_charged for sequence in many)
    assert ratio == pytest.approx(weight, rel=0.2)


def test_what_needs_no_adapter_never_pauses() -> None:
    drive = Drive(num_slots=1, num_blocks=64)
    base = drive.add(2, num_new=12)
    for index, adapter in enumerate("ab"):
        drive.add(2, num_new=20, adapter=adapter, first_token=50 * (index + 1))
    for _ in range(12):
        assert base in [chunk.sequence for chunk in drive.step()]
    assert base.status is SequenceStatus.FINISHED


def test_aborted_sequence_gives_back_everything() -> None:
    drive = Drive()
    running, waiting = drive.add(6, adapter="a"), drive.add(20, adapter="b")
    drive.step()
    drive.scheduler.finish(running)
    drive.scheduler.finish(waiting)
    drive.check_empty()


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
    turn_steps=st.integers(1, 3),
)
def test_every_request_ends_and_nothing_leaks(
    requests: list[tuple[int, int, str | None, int, int, int | None]],
    num_blocks: int,
    num_slots: int,
    max_num_seqs: int,
    turn_steps: int,
) -> None:
    drive = Drive(num_blocks, num_slots, max_num_seqs, turn_steps=turn_steps)
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
    drive.check_empty()


def test_guesses_share_the_budget_and_stay_within_the_blocks_held() -> None:
    drive = Drive(num_blocks=16, max_batched_tokens=6, speculative_tokens=4)
    for index in range(3):
        drive.add(4, num_new=40, first_token=100 * index)
    num_guessed = 0
    while not drive.is_idle:
        num_guessed += sum(len(chunk.guess) for chunk in drive.step())
    assert 0 < drive.num_guessed_right < num_guessed
    drive.check_empty()


def test_guesses_leave_room_for_prompts_that_wait() -> None:
    drive = Drive(num_blocks=64, max_num_seqs=8, max_batched_tokens=12, speculative_tokens=4)
    talkers = [drive.add(4, num_new=60, first_token=100 * index) for index in range(3)]
    for _ in range(20):
        drive.step()
    newcomer = drive.add(8, num_new=1, first_token=900, tenant=Tenant("newcomer"))
    for _ in range(3):
        drive.step()
    assert newcomer.status is SequenceStatus.FINISHED
    assert all(talker.status is SequenceStatus.RUNNING for talker in talkers)

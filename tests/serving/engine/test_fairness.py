"""How long somebody with one request waits behind others whose queues never end."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, event, given, settings, strategies as st

from lorafleet_serving.engine.request import ANONYMOUS, Tenant
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from tests.serving.engine.drive import BLOCK, Drive

Sequences = Collection[Sequence]

BUDGET = 8
NUM_SEQS = 4


@dataclass
class Greedy:
    """Somebody of whom two requests wait at all times."""

    tenant: Tenant
    adapter: str | None
    priority: int
    prompt_len: int
    num_new: int

    def __post_init__(self) -> None:
        self.sequences: list[Sequence] = []

    def top_up(self, drive: Drive) -> None:
        waiting = sum(sequence.status is SequenceStatus.WAITING for sequence in self.sequences)
        for _ in range(2 - waiting):
            first_token = 100 * drive.num_added  # No two prompts share a block.
            self.sequences.append(
                drive.add(
                    self.prompt_len, self.num_new, self.adapter, first_token, tenant=self.tenant, priority=self.priority
                )
            )

    @property
    def num_charged(self) -> int:
        return sum(sequence.num_charged for sequence in self.sequences)


def check_wait(
    drive: Drive, others: list[Greedy], newcomer: Sequence, weights: list[float], earlier: Sequences = ()
) -> None:
    """Let the newcomer have its first token, and hold what others had meanwhile against the bounds: of each, of all.

    `earlier` are sequences of the newcomer's tenant that run on since before others had to wait.
    """
    own_before = sum(sequence.num_charged for sequence in earlier)
    before = [other.num_charged for other in others]
    while newcomer.num_generated == 0 and newcomer.status is not SequenceStatus.FINISHED:
        for other in others:
            other.top_up(drive)
        drive.step()
    had = [other.num_charged - charged for other, charged in zip(others, before, strict=True)]
    own = (sum(sequence.num_charged for sequence in earlier) - own_before) / newcomer.request.tenant.weight
    may = [
        allowance(drive, other, newcomer, weight) + weight * own for other, weight in zip(others, weights, strict=True)
    ]
    steps = (2 * NUM_SEQS + pauses(drive, others, newcomer)) * BUDGET
    assert all(tokens <= most + steps for tokens, most in zip(had, may, strict=True))
    assert sum(had) <= sum(may) + steps


def allowance(drive: Drive, other: Greedy, newcomer: Sequence, weight: float) -> float:
    """New tokens that the scheduler lets one of weight `weight` have in that time, but for those of two steps for each
    sequence of the batch."""
    ours = newcomer.request
    own = drive.fairness_slack + len(ours.prompt_token_ids) / ours.tenant.weight
    head_start = max(0, other.priority - ours.priority) * drive.priority_head_start
    return weight * (own + head_start)


def pauses(drive: Drive, others: list[Greedy], newcomer: Sequence) -> int:
    """Steps for which the newcomer may pause; none where all adapters fit on the device."""
    adapters = {newcomer.adapter, *(other.adapter for other in others)} - {None}
    if newcomer.adapter is None or len(adapters) <= drive.num_slots:
        return 0
    # It gets on by a token in each step of a turn at least.
    num_turns = math.ceil(len(newcomer.request.prompt_token_ids) / drive.turn_steps)
    return num_turns * math.ceil(len(adapters) / drive.num_slots) * drive.turn_steps


weight_strategy = st.sampled_from([0.5, 1.0, 4.0])
adapter_strategy = st.sampled_from([None, "a", "b", "c"])
size_strategy = {"prompt_len": st.integers(1, 24), "num_new": st.integers(1, 30)}
greedy_tenants = st.lists(
    st.tuples(weight_strategy, adapter_strategy, st.integers(-1, 1), *size_strategy.values()), min_size=1, max_size=3
)
greedy_adapters = st.lists(
    st.tuples(adapter_strategy, st.integers(-1, 1), *size_strategy.values()),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item[0],
)
drives = st.builds(
    Drive,
    num_blocks=st.sampled_from([16, 20, 64, 256]),
    num_slots=st.integers(1, 3),
    max_num_seqs=st.just(NUM_SEQS),
    max_batched_tokens=st.just(BUDGET),
    max_prefill_tokens=st.sampled_from([2, BUDGET]),
    turn_steps=st.sampled_from([1, 2, 5]),
    fairness_slack=st.sampled_from([16, 64]),
    priority_head_start=st.sampled_from([0, 64]),
    speculative_tokens=st.sampled_from([0, 0, 3]),
)
profile = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@profile
@given(
    drive=drives,
    greedy=greedy_tenants,
    newcomer=st.tuples(weight_strategy, adapter_strategy, st.integers(-1, 1), st.integers(1, 30)),
    num_steps=st.integers(1, 80),
)
def test_greedy_tenants_delay_another_by_no_more_than_stated(
    drive: Drive,
    greedy: list[tuple[float, str | None, int, int, int]],
    newcomer: tuple[float, str | None, int, int],
    num_steps: int,
) -> None:
    others = [Greedy(Tenant(f"greedy-{index}", item[0]), *item[1:]) for index, item in enumerate(greedy)]
    for _ in range(num_steps):
        for other in others:
            other.top_up(drive)
        drive.step()
    weight, adapter, priority, prompt_len = newcomer
    sequence = drive.add(prompt_len, 2, adapter, 90, tenant=Tenant("newcomer", weight), priority=priority)
    check_wait(drive, others, sequence, [other.tenant.weight for other in others])
    event(f"preempted {min(drive.num_preemptions, 3)}")


@profile
@given(
    drive=drives,
    greedy=greedy_adapters,
    newcomer=st.tuples(st.integers(-1, 1), st.integers(1, 30)),
    num_steps=st.integers(1, 80),
)
def test_greedy_adapters_delay_another_by_no_more_than_stated(
    drive: Drive, greedy: list[tuple[str | None, int, int, int]], newcomer: tuple[int, int], num_steps: int
) -> None:
    others = [Greedy(ANONYMOUS, *rest) for rest in greedy]
    for _ in range(num_steps):
        for other in others:
            other.top_up(drive)
        drive.step()
    priority, prompt_len = newcomer
    sequence = drive.add(prompt_len, 2, "newcomer", 90, priority=priority)
    check_wait(drive, others, sequence, [1.0] * len(others))
    event(f"preempted {min(drive.num_preemptions, 3)}")


def test_what_was_had_while_nobody_waited_is_no_debt() -> None:
    """Somebody computes long answers while nobody waits, and asks again when others have begun to."""
    drive = Drive(num_blocks=1024, max_num_seqs=NUM_SEQS, fairness_slack=16)
    tenant = Tenant("newcomer", 1.0)
    earlier = [drive.add(2, 300, first_token=100 * number, tenant=tenant) for number in range(NUM_SEQS - 1)]
    drive.step()
    drive.add(2, 2, first_token=90, tenant=Tenant("passer-by", 1.0))
    for _ in range(200):
        drive.step()
    others = [Greedy(Tenant("greedy", 1.0), None, 0, 4, 4)]
    others[0].top_up(drive)
    newcomer = drive.add(2, 2, first_token=90, tenant=tenant)
    check_wait(drive, others, newcomer, [1.0], earlier)


@profile
@given(
    drive=drives,
    history=st.lists(st.tuples(st.booleans(), weight_strategy, adapter_strategy, st.integers(1, 250)), max_size=12),
    greedy=greedy_tenants,
    newcomer=st.tuples(weight_strategy, adapter_strategy, st.integers(-1, 1), st.integers(1, 30)),
)
def test_nobody_is_behind_for_what_was_had_while_nobody_waited(
    drive: Drive,
    history: list[tuple[bool, float, str | None, int]],
    greedy: list[tuple[float, str | None, int, int, int]],
    newcomer: tuple[float, str | None, int, int],
) -> None:
    weight, adapter, priority, prompt_len = newcomer
    tenant = Tenant("newcomer", weight)
    earlier: list[Sequence] = []
    for is_own, other_weight, own_adapter, num_new in history:
        asker = tenant if is_own else Tenant("passer-by", other_weight)
        fitting = min(num_new, BLOCK * drive.num_blocks - 1)
        first_token = 100 * drive.num_added
        earlier += [drive.add(1, fitting, own_adapter, first_token, tenant=asker, priority=priority)]
        drive.step()
        while drive.scheduler.waiting or any(not drive.scheduler.may_compute(item) for item in drive.scheduler.running):
            drive.step()
    others = [Greedy(Tenant(f"greedy-{index}", item[0]), *item[1:]) for index, item in enumerate(greedy)]
    for other in others:
        other.top_up(drive)
    sequence = drive.add(prompt_len, 2, adapter, 90, tenant=tenant, priority=priority)
    own = [item for item in earlier if item.request.tenant is tenant]
    check_wait(drive, others, sequence, [other.tenant.weight for other in others], own)
    event(f"preempted {min(drive.num_preemptions, 3)}")


@pytest.mark.parametrize("num_new", [100, 400])
def test_who_computes_nothing_keeps_no_place_on_the_device(num_new: int) -> None:
    """A tenant holds the only place for a prompt that others go before, since it has so much else computed."""
    drive = Drive(
        num_blocks=2000,
        num_slots=1,
        max_num_seqs=32,
        max_batched_tokens=32,
        max_prefill_tokens=4,
        turn_steps=4,
        fairness_slack=64,
    )
    paused = drive.add(2, 2000, "paused", tenant=Tenant("one"))
    for _ in range(3):
        drive.step()
    holder = Tenant("two")
    drive.add(400, 10, "held", 100, tenant=holder)
    answers = [drive.add(2, num_new, None, 1000 * number, tenant=holder) for number in range(1, 9)]
    others = Greedy(Tenant("three"), None, 0, 60, 1)
    longest = num_paused = 0
    while any(answer.status is not SequenceStatus.FINISHED for answer in answers):
        others.top_up(drive)
        computed = [chunk.sequence for chunk in drive.step()]
        num_paused = 0 if paused in computed else num_paused + 1
        longest = max(longest, num_paused)
    assert 0 < longest <= 2 * drive.turn_steps


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_tenants_that_always_ask_share_by_weight(weight: float) -> None:
    drive = Drive(num_blocks=64)
    tenants = [Greedy(Tenant("light", 1.0), None, 0, 5, 40), Greedy(Tenant("heavy", weight), "a", 0, 20, 5)]
    for _ in range(2000):
        for tenant in tenants:
            tenant.top_up(drive)
        drive.step()
    light, heavy = (tenant.num_charged for tenant in tenants)
    assert abs(heavy / weight - light) <= 2 * drive.fairness_slack

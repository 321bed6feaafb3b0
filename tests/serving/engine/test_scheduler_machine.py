"""Scheduler and block manager under random events; every account is checked after each.

`pytest -m soak` runs 10,000 steps and more.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.request import PRIORITIES, GenerationRequest, Tenant
from lorafleet_serving.engine.sequence import Sequence, SequenceStatus
from tests.serving.engine.drive import BLOCK, Drive

SHORT = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SOAK = settings(SHORT, max_examples=200, stateful_step_count=100)
NUM_SOAK_STEPS = 10_000

steps_taken: Counter[str] = Counter()

TENANTS = [Tenant("one"), Tenant("two", 2.0), Tenant("half", 0.5)]


class SchedulerMachine(RuleBasedStateMachine):
    """Requests of several tenants, adapters and priorities come, are computed, and are given up."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rules = 0
        self.drive = Drive()
        self.live: list[Sequence] = []
        self.behind: Counter[Sequence] = Counter()
        """For how many steps in a row somebody who runs has been too far ahead of the first that waits."""

    @initialize(
        num_blocks=st.integers(8, 24),
        num_slots=st.integers(1, 3),
        max_num_seqs=st.integers(1, 5),
        max_prefill_tokens=st.integers(1, 8),
        turn_steps=st.integers(1, 4),
        fairness_slack=st.sampled_from([1, 8, 64]),
        priority_head_start=st.sampled_from([0, 32]),
        speculative_tokens=st.sampled_from([0, 1, 4]),
    )
    def set_up(self, **options: int) -> None:
        self.drive = Drive(**options)  # type: ignore[arg-type]  # The drawn names are those of settings.

    @rule(
        num_tokens=st.integers(1, 24),
        num_new=st.integers(1, 8),
        adapter=st.sampled_from([None, None, "a", "b", "c", "d"]),
        first_token=st.sampled_from([0, 0, 100]),  # Equal beginnings happen.
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(PRIORITIES),
    )
    def add(
        self, num_tokens: int, num_new: int, adapter: str | None, first_token: int, tenant: Tenant, priority: int
    ) -> None:
        self.live.append(self.drive.add(num_tokens, num_new, adapter, first_token, tenant=tenant, priority=priority))

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.drive.step()
            self.watch_the_first()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        num_held = len(sequence.block_table)
        self.drive.scheduler.finish(sequence)
        assert not sequence.block_table, f"{num_held} blocks are still held"

    def watch_the_first(self) -> None:
        scheduler = self.drive.scheduler
        waits = [] if scheduler.refused is None else [scheduler.refused]
        lead, slack = scheduler._shares.lead, self.drive.fairness_slack
        ahead = [item for item in waits if any(lead(other, item) > slack for other in scheduler.running)]
        self.behind = Counter({item: self.behind[item] + 1 for item in ahead})
        assert max(self.behind.values(), default=0) <= 2 * self.drive.max_num_seqs, "nobody makes way"

    @invariant()
    def accounts_add_up(self) -> None:
        self.num_rules += 1
        self.live = [sequence for sequence in self.live if sequence.status is not SequenceStatus.FINISHED]
        self.drive.check_integrity()

    def teardown(self) -> None:
        for _ in range(4000):
            if self.drive.is_idle:
                break
            self.drive.step()
            self.watch_the_first()
        self.drive.check_empty()
        steps_taken["scheduler"] += self.num_rules


class BlockMachine(RuleBasedStateMachine):
    """Sequences with equal beginnings take, fill, share and give back blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rules = 0
        self.blocks = BlockManager(1, BLOCK)
        self.live: list[Sequence] = []
        self.contents: dict[int, tuple[str | None, tuple[int, ...]]] = {}
        """What was written into each block since it was given out."""

    @initialize(num_blocks=st.integers(4, 16), prefix_caching=st.booleans())
    def set_up(self, num_blocks: int, prefix_caching: bool) -> None:
        self.blocks = BlockManager(num_blocks, BLOCK, prefix_caching=prefix_caching)

    @rule(
        num_tokens=st.integers(1, 30),
        first_token=st.sampled_from([0, 0, 0, 100]),
        adapter=st.sampled_from([None, "a"]),
        num_reserved=st.integers(0, 2),
    )
    def allocate(self, num_tokens: int, first_token: int, adapter: str | None, num_reserved: int) -> None:
        tokens = tuple(range(first_token, first_token + num_tokens))
        sequence = Sequence(GenerationRequest("r", tokens, adapter=adapter), arrival=0)
        free = self.blocks.num_free
        if not self.blocks.allocate(sequence, num_reserved):
            assert self.blocks.num_free == free
            assert not sequence.block_table
            return
        assert self.blocks.num_free >= num_reserved
        assert sequence.num_remaining >= 1
        for position in range(sequence.num_computed // BLOCK):
            known = self.contents[sequence.block_table[position]]
            assert known == (adapter, tokens[: (position + 1) * BLOCK]), "a block with other contents is shared"
        self.live.append(sequence)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), num_tokens=st.integers(1, 12))
    def compute(self, data: st.DataObject, num_tokens: int) -> None:
        sequence = data.draw(st.sampled_from(self.live))
        num_new = min(num_tokens, sequence.num_remaining)
        for position in range(sequence.num_computed, sequence.num_computed + num_new):
            block = sequence.block_table[position // BLOCK]
            self.contents[block] = (sequence.adapter, tuple(sequence.token_ids[: position + 1]))
        sequence.num_computed += num_new
        self.blocks.remember(sequence, num_new)
        if sequence.num_remaining == 0:
            sequence.token_ids.append(len(sequence.token_ids))
            if not self.blocks.append(sequence):
                assert self.blocks.num_free == 0
                self.end(sequence, forget=False)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), forget=st.booleans())
    def free(self, data: st.DataObject, forget: bool) -> None:
        self.end(data.draw(st.sampled_from(self.live)), forget=forget)

    def end(self, sequence: Sequence, *, forget: bool) -> None:
        self.blocks.free(sequence, forget=forget)
        self.live.remove(sequence)

    @invariant()
    def accounts_add_up(self) -> None:
        self.num_rules += 1
        self.blocks.check_integrity(self.live)

    def teardown(self) -> None:
        for sequence in list(self.live):
            self.end(sequence, forget=False)
        self.blocks.check_integrity([])
        assert self.blocks.num_free == self.blocks.num_blocks
        steps_taken["blocks"] += self.num_rules


MACHINES = {"scheduler": SchedulerMachine, "blocks": BlockMachine}


@pytest.mark.parametrize("name", MACHINES)
def test_nothing_leaks_and_nobody_starves(name: str) -> None:
    run_state_machine_as_test(MACHINES[name], settings=SHORT)


@pytest.mark.soak
@pytest.mark.parametrize("name", MACHINES)
def test_nothing_leaks_and_nobody_starves_for_long(name: str) -> None:
    steps_taken.clear()
    run_state_machine_as_test(MACHINES[name], settings=SOAK)
    assert steps_taken[name] >= NUM_SOAK_STEPS

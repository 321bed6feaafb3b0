"""Processes that share the disk tier, under random steps and kills; every account is checked after each.

`pytest -m soak` takes many more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from lorafleet_serving.adapters.disk import DiskTier
from lorafleet_serving.exceptions import NoRoom
from tests.serving.adapters.disk_process import DiskProcess, adapter

NUM_PROCESSES = 2
BUDGET = 1000
SIZES = (200, 300, 450, 500, 700, 1000)
"""Of the adapters, by seed."""
SHORT = settings(
    max_examples=8,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # To shrink would take a thousand processes.
)
SOAK = settings(SHORT, max_examples=150, stateful_step_count=60)

processes = st.integers(0, NUM_PROCESSES - 1)
seeds = st.integers(0, len(SIZES) - 1)


def _digest(seed: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / CONFIG_FILE).write_bytes(b"{}")
        (Path(name) / WEIGHTS_FILE).write_bytes(adapter(seed, SIZES[seed]))
        return adapter_digest(Path(name))


DIGESTS = [_digest(seed) for seed in range(len(SIZES))]


class DiskMachine(RuleBasedStateMachine):
    """What each process has begun is known here, and tells what the others must find."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.watching = DiskTier(self.root, BUDGET)
        self.living = [DiskProcess(self.root, BUDGET) for _ in range(NUM_PROCESSES)]
        self.begun: dict[int, int] = {}
        """The process that downloads, by seed."""
        self.used: set[tuple[int, int]] = set()
        """Processes and the seeds that they read."""

    @rule(who=processes, seed=seeds)
    def begin(self, who: int, seed: int) -> None:
        found = self.living[who].call("begin", DIGESTS[seed], adapter(seed, SIZES[seed]))
        if seed in self.begun:
            assert found == "elsewhere"
        elif DIGESTS[seed] in self.watching.digests() and found == "there":
            return
        else:
            # Nothing but downloads under way and what is read may be in the way.
            taken = sum(SIZES[other] for other in {*self.begun, *(other for _, other in self.used)})
            assert found == ("begun" if taken + SIZES[seed] <= BUDGET else "no room")
            if found == "begun":
                self.begun[seed] = who

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), is_whole=st.booleans())
    def end(self, data: st.DataObject, is_whole: bool) -> None:
        seed = data.draw(st.sampled_from(sorted(self.begun)))
        self.living[self.begun.pop(seed)].call("finish" if is_whole else "give_up", DIGESTS[seed])
        assert (DIGESTS[seed] in self.watching.digests()) is is_whole

    @rule(who=processes, seed=seeds)
    def download(self, who: int, seed: int) -> None:
        self.begin(who, seed)
        if self.begun.get(seed) == who:
            del self.begun[seed]
            self.living[who].call("finish", DIGESTS[seed])

    @rule(who=processes, seed=seeds)
    def use(self, who: int, seed: int) -> None:
        if (who, seed) not in self.used:
            is_there = DIGESTS[seed] in self.watching.digests()
            assert self.living[who].call("use", DIGESTS[seed]) is is_there
            if is_there:
                self.used.add((who, seed))

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def stop_using(self, data: st.DataObject) -> None:
        who, seed = data.draw(st.sampled_from(sorted(self.used)))
        self.used.discard((who, seed))
        self.living[who].call("stop_using", DIGESTS[seed])

    @rule(who=processes, wanted=st.frozensets(seeds))
    def want(self, who: int, wanted: frozenset[int]) -> None:
        self.living[who].call("keep", frozenset(DIGESTS[seed] for seed in wanted))

    @precondition(lambda self: self.begun or self.used)
    @rule(data=st.data())
    def kill_and_start_again(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted({*self.begun.values(), *(other for other, _ in self.used)})))
        self.living[who].kill()
        self.begun = {seed: other for seed, other in self.begun.items() if other != who}
        self.used = {(other, seed) for other, seed in self.used if other != who}
        self.living[who] = DiskProcess(self.root, BUDGET)

    @invariant()
    def accounts_agree(self) -> None:
        self.watching.check_integrity()
        for process in self.living:
            process.call("check")

    @invariant()
    def what_stands_is_whole_and_what_is_read_stands(self) -> None:
        for folder in (self.root / "adapters").iterdir():
            assert adapter_digest(folder) == f"sha256:{folder.name}"
        assert {DIGESTS[seed] for _, seed in self.used} <= self.watching.digests()

    def teardown(self) -> None:
        for process in self.living:
            process.kill()
        try:
            with self.watching.staging(BUDGET):
                self.watching.check_integrity()
        except NoRoom as error:
            raise AssertionError("the dead hold something back") from error
        scraps = [path for path in (self.root / "staging").glob("*/*") if path.name != "wanted"]
        assert not scraps, "the dead left something behind"
        self.folder.cleanup()


def test_processes_that_are_killed_at_any_step_leave_accounts_and_adapters_whole() -> None:
    run_state_machine_as_test(DiskMachine, settings=SHORT)


@pytest.mark.soak
def test_the_same_for_long() -> None:
    run_state_machine_as_test(DiskMachine, settings=SOAK)

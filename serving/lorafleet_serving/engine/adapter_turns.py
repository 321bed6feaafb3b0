"""Whose adapters are on the device in the next step, where those of the batch do not all fit.

An adapter is held for sequences while it computes for them, and not for as long as they live: to bring it back takes
about a step, to wait for somebody's answer to end takes thousands. A sequence whose adapter is not there pauses: it
keeps its place in the batch and its blocks.

An adapter on the device stays for `turn_steps` steps before another may have its place. Between tenants the one that
has had least of the device is next, and takes its place from one that had more; among the adapters of a tenant it is
the one that waits longest, a level of priority counting as `PRIORITY_STEPS` steps of waiting. What a tenant has had is
counted in steps of its adapters on the device, by its weight, since somebody was first kept waiting for it: whoever
holds a place pays for it, whether it computes or not. So of n adapters of one tenant and priority, where at least k fit
at a time, none pauses for more than ceil(n / k) * turn_steps steps; and tenants have the device, by weight, to within
what a turn brings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from lorafleet_serving.engine.account import Account, Ledger
from lorafleet_serving.engine.sequence import Sequence

PRIORITY_STEPS = 16


class Residency(Protocol):
    """The device's tier of adapters."""

    def acquire(self, digest: str) -> bool:
        """Make an adapter resident and hold it; False while there is no room."""
        ...

    def release(self, digest: str) -> None:
        """Give back one hold."""
        ...


class AdapterTurns:
    """The adapters of the batch: those that are held on the device, and those that wait to be.

    Tenants have accounts of their own here: who waits for a place in the batch may not wait for one on the device.
    """

    def __init__(self, residency: Residency, turn_steps: int) -> None:
        self._residency = residency
        self._turn_steps = turn_steps
        self._tenants = Ledger(Account)
        self._accounts: dict[Sequence, Account] = {}
        self._batch: dict[str, set[Sequence]] = {}
        """Sequences by adapter."""
        self._began: dict[str, int] = {}
        """Held adapters and the step in which their turn began, the earliest first."""
        self._waits_since: dict[str, int] = {}
        """Adapters that wait for their turn, and the step from which on; the earliest first."""
        self._step = 0
        self.num_pauses = 0
        """Times that an adapter gave up its place while sequences of the batch had more to compute with it."""

    def has(self, adapter: str | None) -> bool:
        """Whether sequences with the adapter may compute in this step."""
        return adapter is None or adapter in self._began

    def begin_step(self) -> None:
        """Let those whose turn is over make way for those that wait."""
        self._step += 1
        if self._waits_since:
            for adapter in self._began:
                self._charge(adapter)
        else:
            self._tenants.begin_anew()
        for adapter in sorted(self._waits_since, key=self._place):
            # None is let past one that needs more room than is free yet: it would wait for ever.
            if not self._take_place(adapter):
                return
            del self._waits_since[adapter]
            for account in self._accounts_of(adapter):
                self._tenants.admit(account)

    def enter(self, sequence: Sequence) -> None:
        """A sequence joins the batch. Nobody's turn ends for it before the next step: this one is planned already."""
        adapter = sequence.adapter
        if adapter is None:
            return
        self._batch.setdefault(adapter, set()).add(sequence)
        account = self._accounts[sequence] = self._tenants.ask(sequence.request.tenant.name, self._credit())
        if adapter not in self._began and adapter not in self._waits_since:
            if not self._waits_since and self._residency.acquire(adapter):
                self._began[adapter] = self._step
            else:
                self._waits_since[adapter] = self._step
        if adapter in self._began:
            self._tenants.admit(account)

    def leave(self, sequence: Sequence) -> None:
        """A sequence has left the batch."""
        adapter = sequence.adapter
        if adapter is None:
            return
        self._batch[adapter].remove(sequence)
        self._accounts.pop(sequence).leave(running=adapter in self._began)
        if self._batch[adapter]:
            return
        del self._batch[adapter]
        self._waits_since.pop(adapter, None)
        if adapter in self._began:
            self._end(adapter)

    def check_integrity(self, batch: Iterable[Sequence]) -> None:
        """Check that each adapter of the batch, and no other, is either held or waits."""
        adapters: dict[str, set[Sequence]] = {}
        for sequence in batch:
            if sequence.adapter is not None:
                adapters.setdefault(sequence.adapter, set()).add(sequence)
        assert adapters == self._batch, "the sequences of the batch are miscounted"
        assert not self._began.keys() & self._waits_since.keys(), "an adapter waits for its turn while it has it"
        known = self._began.keys() | self._waits_since.keys()
        assert adapters.keys() == known, "an adapter neither computes nor waits"
        for account in set(self._accounts.values()):
            mine = [sequence for sequence, held in self._accounts.items() if held is account]
            num_paused = sum(sequence.adapter in self._waits_since for sequence in mine)
            counted = (account.num_waiting, account.num_running)
            assert counted == (num_paused, len(mine) - num_paused), "a tenant's account miscounts its sequences"

    def _take_place(self, adapter: str) -> bool:
        while not self._residency.acquire(adapter):
            over = [held for held, began in self._began.items() if self._step - began >= self._turn_steps]
            over = [held for held in over if self._served(held) >= self._served(adapter)]
            if not over:
                return False
            longest = max(over, key=self._served)  # Of equals the first, whose turn has lasted longest.
            self._end(longest)
            self._waits_since[longest] = self._step
            for account in self._accounts_of(longest):
                account.preempt()
            self.num_pauses += 1
        self._began[adapter] = self._step
        return True

    def _end(self, adapter: str) -> None:
        del self._began[adapter]
        self._residency.release(adapter)

    def _credit(self) -> float:
        """What others had in their last turn at most: who has a place now, by its weight, may be so far behind them.

        More is never kept: an account that asked for little would else have all places for as long, later.
        """
        lightest = min((sequence.request.tenant.weight for sequence in self._accounts), default=1.0)
        return self._turn_steps * max(1, len(self._began)) / lightest

    def _charge(self, adapter: str) -> None:
        """For a step on the device, shared by the tenants who have it there."""
        weights = {self._accounts[sequence]: sequence.request.tenant.weight for sequence in self._batch[adapter]}
        for account, weight in weights.items():
            account.served += 1 / (weight * len(weights))

    def _accounts_of(self, adapter: str) -> list[Account]:
        return [self._accounts[sequence] for sequence in self._batch[adapter]]

    def _served(self, adapter: str) -> float:
        return min(account.served for account in self._accounts_of(adapter))

    def _place(self, adapter: str) -> tuple[float, int]:
        priority = max(sequence.request.priority for sequence in self._batch[adapter])
        return self._served(adapter), self._waits_since[adapter] - PRIORITY_STEPS * priority

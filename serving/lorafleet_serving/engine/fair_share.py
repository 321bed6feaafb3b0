"""The order in which sequences are served: the tenant served least, of it the adapters served least, the first arrived.

Each of the three is measured in tokens, and a level of priority is a head start of so many tokens in each of them. So
a higher priority goes first, but only until it is that far ahead: the wait of a lower one is bounded.

Adapters count as served alike while they are within `adapter_grain` tokens of each other. Going by every token, an
adapter that a few more happen to ask for at a time would make them wait several times as long as everybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from lorafleet_serving.engine.account import Account, Ledger, TenantAccount
from lorafleet_serving.engine.sequence import Sequence

Sequences = Collection[Sequence]


class _Accounts(NamedTuple):
    tenant: TenantAccount
    adapter: Account


class FairShare:
    """Keeps the accounts of all live sequences and compares by them."""

    def __init__(self, priority_head_start: int, adapter_grain: int) -> None:
        self._head_start = priority_head_start
        self._adapter_grain = adapter_grain
        self._tenants = Ledger(TenantAccount)
        self._accounts: dict[Sequence, _Accounts] = {}
        self._kept_waiting: Sequences = ()
        self._num_tokens = 0
        """Tokens computed for anybody."""

    def ask(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        sequence.num_before = self._num_tokens
        tenant = self._tenants.ask(sequence.request.tenant.name)
        self._accounts[sequence] = _Accounts(tenant, tenant.adapters.ask(sequence.adapter))

    def admit(self, sequence: Sequence) -> None:
        """A waiting sequence runs."""
        tenant, adapter = self._accounts[sequence]
        self._tenants.admit(tenant)
        tenant.adapters.admit(adapter)

    def preempt(self, sequence: Sequence) -> None:
        """A running sequence waits again, its accounts as they are."""
        for account in self._accounts[sequence]:
            account.preempt()

    def leave(self, sequence: Sequence, *, running: bool) -> None:
        """A sequence has ended while it ran or waited."""
        for account in self._accounts.pop(sequence):
            account.leave(running=running)

    def begin_step(self) -> None:
        """Begin anew the accounts of those of whom nobody was kept waiting in the last step."""
        waiting = {self._accounts[sequence].tenant for sequence in self._kept_waiting if sequence in self._accounts}
        if not waiting:
            self._tenants.begin_anew()
        for tenant in self._tenants:
            if tenant not in waiting:
                tenant.adapters.begin_anew()

    def end_step(self, kept_waiting: Sequences) -> None:
        """Take note of those who found no place in this step, or fewer tokens than their prompts have."""
        self._kept_waiting = kept_waiting

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """The next `num_tokens` of a sequence are computed.

        Those that were computed before, and lost by a preemption, cost nothing: to be preempted is no debt.
        """
        end = sequence.num_computed + num_tokens
        num_new = max(0, end - max(sequence.num_charged, sequence.num_computed))
        sequence.num_charged = max(sequence.num_charged, end)
        tenant, adapter = self._accounts[sequence]
        tenant.served += num_new / sequence.request.tenant.weight
        adapter.served += num_new
        self._num_tokens += num_new

    def first(self, sequences: Iterable[Sequence]) -> Sequence:
        """Whose turn it is."""

        def choose_adapter(heads: Sequences) -> Sequence:
            least = min(self._adapter_place(head)[0] for head in heads)
            alike = [head for head in heads if self._adapter_place(head)[0] <= least + self._adapter_grain]
            return min(alike, key=_turn)

        return self._choose(sequences, min, choose_adapter)

    def last(self, sequences: Iterable[Sequence]) -> Sequence:
        """Whose turn it would be last."""

        def choose_adapter(tails: Sequences) -> Sequence:
            most = max(self._adapter_place(tail)[0] for tail in tails)
            alike = [tail for tail in tails if self._adapter_place(tail)[0] >= most - self._adapter_grain]
            return max(alike, key=_turn)

        return self._choose(sequences, max, choose_adapter)

    def own_place(self, sequence: Sequence) -> tuple[float, int]:
        """Place among the sequences of the same tenant and adapter, the smallest first. Never changes."""
        return sequence.num_before - self._bonus(sequence), sequence.arrival

    def lead(self, one: Sequence, other: Sequence) -> float:
        """How many tokens `one` was served more than `other`, where their ways part.

        Of adapters, more than the least served of those that count as served like that of `other`: what is waited for
        on behalf of `other` is then no longer for any of them.
        """
        ours, theirs = self._accounts[one], self._accounts[other]
        if ours.tenant is not theirs.tenant:
            return self._tenant_place(one)[0] - self._tenant_place(other)[0]
        if ours.adapter is not theirs.adapter:
            return self._adapter_place(one)[0] - self._adapter_place(other)[0] + self._adapter_grain
        return self.own_place(one)[0] - self.own_place(other)[0]

    def check_integrity(self, waiting: Iterable[Sequence], running: Iterable[Sequence]) -> None:
        """Check that the accounts count the sequences that wait and run."""
        waiting, running = set(waiting), set(running)
        assert set(self._accounts) == waiting | running, "the accounts are not those of the live sequences"
        for account in {account for accounts in self._accounts.values() for account in accounts}:
            mine = {sequence for sequence, accounts in self._accounts.items() if account in accounts}
            assert account.num_waiting == len(mine & waiting), "an account miscounts the waiting"
            assert account.num_running == len(mine & running), "an account miscounts the running"

    def _choose(
        self,
        sequences: Iterable[Sequence],
        choose: Callable[..., Sequence],
        choose_adapter: Callable[[Sequences], Sequence],
    ) -> Sequence:
        # In each group by itself first: between two tenants it says nothing how their adapters compare.
        adapters: dict[Account, list[Sequence]] = {}
        for sequence in sequences:
            adapters.setdefault(self._accounts[sequence].adapter, []).append(sequence)
        tenants: dict[Account, list[Sequence]] = {}
        for group in adapters.values():
            chosen = choose(group, key=self.own_place)
            tenants.setdefault(self._accounts[chosen].tenant, []).append(chosen)
        return choose((choose_adapter(group) for group in tenants.values()), key=self._tenant_place)

    def _tenant_place(self, sequence: Sequence) -> tuple[float, int]:
        return self._accounts[sequence].tenant.served - self._bonus(sequence), sequence.arrival

    def _adapter_place(self, sequence: Sequence) -> tuple[float, int]:
        return self._accounts[sequence].adapter.served - self._bonus(sequence), sequence.arrival

    def _bonus(self, sequence: Sequence) -> int:
        return sequence.request.priority * self._head_start


def _turn(sequence: Sequence) -> tuple[int, int]:
    return -sequence.request.priority, sequence.arrival

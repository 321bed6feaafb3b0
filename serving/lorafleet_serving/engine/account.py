"""What somebody has had of what is shared: an account for each tenant, and for each adapter of a tenant.

An account is a virtual time: tokens computed, or steps on the device, divided by the weight of whom they were for.
Whoever has the least is served next, as in start-time fair queueing (Goyal, Vin and Cheng, 1996) and in the virtual
token counter (Sheng et al., "Fairness in Serving Large Language Models", 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar


class Account:
    """Virtual time of a tenant, or of one of its adapters."""

    def __init__(self) -> None:
        self.served = 0.0
        """Had since the accounts began, divided by the weight."""
        self.num_waiting = 0
        self.num_running = 0

    @property
    def is_live(self) -> bool:
        """Whether any sequence of it waits or runs."""
        return self.num_waiting > 0 or self.num_running > 0

    def preempt(self) -> None:
        """A running sequence waits again."""
        self.num_waiting += 1
        self.num_running -= 1

    def leave(self, *, running: bool) -> None:
        """A sequence has ended while it ran or waited."""
        if running:
            self.num_running -= 1
        else:
            self.num_waiting -= 1


AnyAccount = TypeVar("AnyAccount", bound=Account)


class Ledger(Generic[AnyAccount]):
    """The accounts that share something, by key, since somebody was first kept waiting for it.

    Whoever asks while nothing of it waits is put level with the one that was served least among those who wait: to
    have asked for nothing is no credit. An account is closed once that rule makes it void. And what is had while
    nobody is kept waiting is no debt: all begin anew then, as after an idle time in start-time fair queueing.
    """

    def __init__(self, kind: Callable[[], AnyAccount]) -> None:
        self._open = kind
        self._accounts: dict[str | None, AnyAccount] = {}
        self._last: Account | None = None
        """The account that was admitted last."""

    def __len__(self) -> int:
        return len(self._accounts)

    def __iter__(self) -> Iterator[AnyAccount]:
        return iter(self._accounts.values())

    def ask(self, key: str | None, credit: float = 0.0) -> AnyAccount:
        """A new sequence waits; returns its account, which may stay so far behind the others' level."""
        if key not in self._accounts:
            self._close_void()
            self._accounts[key] = self._open()
        account = self._accounts[key]
        if account.num_waiting == 0:
            account.served = max(account.served, self._level() - credit)
        account.num_waiting += 1
        return account

    def admit(self, account: AnyAccount) -> None:
        """A waiting sequence runs."""
        account.num_waiting -= 1
        account.num_running += 1
        self._last = account

    def begin_anew(self) -> None:
        """Nobody was kept waiting: nobody is ahead of anybody."""
        self._last = None
        self._accounts = {key: account for key, account in self._accounts.items() if account.is_live}
        for account in self:
            account.served = 0.0

    def _level(self) -> float:
        served = [account.served for account in self._accounts.values() if account.num_waiting]
        if served:
            return min(served)
        return 0.0 if self._last is None else self._last.served

    def _close_void(self) -> None:
        level = self._level()
        for key, account in list(self._accounts.items()):
            if not account.is_live and account.served <= level:
                del self._accounts[key]


class TenantAccount(Account):
    """Virtual time of one tenant, and the accounts of its adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = Ledger(Account)

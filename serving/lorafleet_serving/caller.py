"""Who asks, and what the request may cost others."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from lorafleet_serving.engine.request import ANONYMOUS, Tenant
from lorafleet_serving.quota import Quota, Reservation


@dataclass(frozen=True)
class Caller:
    """What is known of one request besides its body."""

    tenant: Tenant = ANONYMOUS
    names_versions: bool = False
    """Whether `name:version` may be asked for."""
    priority: int = 0
    deadline: float | None = None
    """When the caller gives up, on the clock of `time.monotonic`."""
    models: tuple[str, ...] = ("*",)
    """Patterns of what may be asked for."""
    quota: Quota | None = field(default=None, compare=False)
    """What is left to have; None is without limits."""
    goes_by: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)
    """What decides whether a canary answers: the same of the same user, or of the same key."""

    def may_ask(self, model: str) -> bool:
        """Whether an adapter of that name, or the base model of that id, may be asked for."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def take_request(self) -> None:
        """One more request.

        Raises:
            QuotaExceeded: it is one too many.
        """
        if self.quota is not None:
            self.quota.take_request()

    def reserve(self, amounts: Sequence[int]) -> list[Reservation]:
        """Tokens that each answer of a request may come to; all must be closed.

        Raises:
            QuotaExceeded: so many are not left.
        """
        return [Reservation() for _ in amounts] if self.quota is None else self.quota.reserve(amounts)

    def on_behalf_of(self, user: str | None) -> Caller:
        """The caller with the user whom a request is for, where it names one."""
        return self if not user else replace(self, goes_by=f"{self.tenant.name}/{user}")

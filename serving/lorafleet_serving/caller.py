"""Who asks, and what the request may cost others."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace

from lorafleet_serving.engine.request import ANONYMOUS, Tenant


@dataclass(frozen=True)
class Caller:
    """What is known of one request besides its body."""

    tenant: Tenant = ANONYMOUS
    names_versions: bool = False
    """Whether `name:version` may be asked for."""
    priority: int = 0
    deadline: float | None = None
    """When the caller gives up, on the clock of `time.monotonic`."""
    goes_by: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)
    """What decides whether a canary answers: the same of the same user, or of the same key."""

    def on_behalf_of(self, user: str | None) -> Caller:
        """The caller with the user whom a request is for, where it names one."""
        return self if not user else replace(self, goes_by=f"{self.tenant.name}/{user}")

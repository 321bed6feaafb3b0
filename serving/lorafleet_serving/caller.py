"""Who asks, and what the request may cost others."""

from __future__ import annotations

from dataclasses import dataclass

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

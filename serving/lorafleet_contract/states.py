"""States that more than one package speaks of."""

from __future__ import annotations

from enum import StrEnum


class ServeState(StrEnum):
    """How far a version has come in a pod, and, aggregated, in the fleet."""

    LOADING = "loading"
    READY = "ready"
    REFUSED = "refused"
    """Will not be served as it is: gate, signature, digest, base or contents are wrong."""
    FAILED = "failed"
    """Could not be loaded for a passing reason; the pod goes on trying."""


class GateStatus(StrEnum):
    """Verdict of the evaluation gate over one version."""

    PASSED = "passed"
    FAILED = "failed"
    WAIVED = "waived"

    @property
    def servable(self) -> bool:
        """Whether a pod may serve a version with this verdict."""
        return self is not GateStatus.FAILED


class Tier(StrEnum):
    """Where the bytes of an adapter are held, nearest to the computation first."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"

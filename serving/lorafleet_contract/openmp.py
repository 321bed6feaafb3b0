"""How OpenMP's threads wait for each other.

A step of the engine is some hundred parallel regions, microseconds apart: a thread that sleeps between them is woken
too late, and costs the step half its speed. One that spins until it is needed takes the core from whom it waits for,
wherever other processes compute too: beside a busy test run a training step took six times as long. So they spin for a
small part of a millisecond, just longer than the pauses between regions, and then sleep.
"""

from __future__ import annotations

import os

BRIEF_WAITS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""Variables that OpenMP reads when it is loaded."""


def wait_briefly() -> None:
    """Settle it for this process, where its environment has not; before torch is imported, which reads it then."""
    for name, value in BRIEF_WAITS.items():
        os.environ.setdefault(name, value)

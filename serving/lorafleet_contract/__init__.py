"""What every part of LoRAFleet agrees on: names, states, tags, manifests, digests, signatures.

Imports nothing of ours, and only the standard library at module level, so that the serving pod, the
pipeline, the Airflow provider and the command line can all depend on it at no cost.
"""

from __future__ import annotations

CONTRACT_VERSION = "1"

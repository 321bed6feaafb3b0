"""Adapters in the pod: catalog, sources, tiers, slots, and the rollout of new versions."""

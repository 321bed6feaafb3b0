"""Comparing an adapter with its base and with the champion, and deciding whether it may serve."""

"""Training of one adapter, in a process of its own that survives whoever started it."""

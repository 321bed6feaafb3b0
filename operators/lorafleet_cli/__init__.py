"""The `lorafleet` command: thin, one module per command group, each loaded only when called."""

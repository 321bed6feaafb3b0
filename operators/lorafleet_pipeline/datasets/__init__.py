"""From rows at an address to validated, rendered examples in three splits."""

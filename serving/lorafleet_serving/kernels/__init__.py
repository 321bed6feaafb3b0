"""Operators: a torch reference of each, which is the CPU path, and the dispatch between forms."""

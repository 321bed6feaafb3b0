"""Operators: one for each step of the pipeline, and those that watch over serving."""

"""Operators for the CPU, compiled by numba when first called: no compiler is needed, and the result is kept on disk."""

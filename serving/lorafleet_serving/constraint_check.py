"""Turns bad constraints away before the engine sees them: the front compiles them too, off its loop."""

from __future__ import annotations

import asyncio

from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.engine.grammar_compiler import GrammarCompiler
from lorafleet_serving.exceptions import QueueFull
from lorafleet_serving.tokenizer import PodTokenizer

_NUM_THREADS = 2
MAX_WAITING = 64
"""Constraints that may wait to be looked at: each may take a second or two."""


class ConstraintCheck:
    """Checks constraints for the tokenizer of one pod. Runs on the front's event loop."""

    def __init__(self, tokenizer: PodTokenizer) -> None:
        # Which tokens end an answer does not matter here.
        self._compiler = GrammarCompiler(tokenizer.to_json, end_token_ids=(), num_threads=_NUM_THREADS)
        self._num_waiting = 0

    def prepare(self) -> None:
        """Load what the first constraint needs: while it loads no other thread runs, the event loop's neither."""
        self._compiler.prepare()

    async def check(self, constraint: Constraint) -> Constraint:
        """Check one constraint; gives it in the form that the engine reads.

        Raises:
            InvalidRequest: no answer can follow it, it is too complex, or the pod lacks the library for it.
            QueueFull: too many are being looked at.
        """
        if self._num_waiting >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} constraints wait to be compiled, which is the limit: try later")
        self._num_waiting += 1
        try:
            if constraint.kind is ConstraintKind.GBNF:
                constraint = await asyncio.wrap_future(self._compiler.translate(constraint))
            await asyncio.wrap_future(self._compiler.submit(constraint))
        finally:
            self._num_waiting -= 1
        return constraint

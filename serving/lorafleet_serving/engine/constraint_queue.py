"""Sequences that wait for their constraint to be compiled, so that nothing else waits for it."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import NamedTuple

from lorafleet_serving.engine.grammar import Grammar
from lorafleet_serving.engine.grammar_compiler import GrammarCompiler
from lorafleet_serving.engine.sequence import Sequence
from lorafleet_serving.exceptions import InvalidRequest

_logger = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.005
"""How long an engine with nothing else to do sleeps before it looks for commands again."""


class CompiledSequence(NamedTuple):
    """A sequence that waits no longer."""

    sequence: Sequence
    error: InvalidRequest | None
    """Why its constraint cannot be followed."""


class ConstraintQueue:
    """In no order: each joins the others when its own constraint is ready."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._compiling: dict[Sequence, Future[Grammar]] = {}

    def __contains__(self, sequence: object) -> bool:
        return sequence in self._compiling

    def add(self, sequence: Sequence) -> None:
        """Begin to compile a sequence's constraint.

        Raises:
            InvalidRequest: the library for it is not installed.
        """
        constraint = sequence.request.sampling.constraint
        assert constraint is not None, "a sequence without a constraint has nothing to wait for"
        self._compiling[sequence] = self._compiler.submit(constraint)

    def discard(self, sequence: Sequence) -> None:
        """Give up waiting."""
        self._compiling.pop(sequence).cancel()

    def take_ready(self) -> list[CompiledSequence]:
        """Those whose constraint was compiled, with their grammar, or could not be."""
        ready = [sequence for sequence, future in self._compiling.items() if future.done()]
        return [CompiledSequence(sequence, self._finish(sequence)) for sequence in ready]

    def sleep(self) -> None:
        """Wait a moment for the next to be ready."""
        wait(self._compiling.values(), _IDLE_WAIT_S, return_when=FIRST_COMPLETED)

    def _finish(self, sequence: Sequence) -> InvalidRequest | None:
        future = self._compiling.pop(sequence)
        error = future.exception()
        if error is None:
            sequence.grammar = future.result()
            return None
        if isinstance(error, InvalidRequest):
            return error
        _logger.error("a constraint broke its compiler", exc_info=error)
        return InvalidRequest(f"the constraint broke its compiler: {error!r}", field="structured_outputs")

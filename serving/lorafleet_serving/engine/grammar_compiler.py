"""Compiles constraints with llguidance, in threads of their own, within bounds that the library keeps.

The front compiles to turn a bad constraint away; the engine compiles again, since what is compiled cannot
leave its process.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lorafleet_serving.engine.constraint import JSON_SPACING, Constraint, ConstraintKind
from lorafleet_serving.engine.gbnf import in_lark
from lorafleet_serving.engine.grammar import Grammar, matcher_error
from lorafleet_serving.exceptions import InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_PACKAGE = "llguidance"
_STACK_BYTES = 256 << 20
"""Address space alone. The library recurses along a chain of rules or references, and dies where its stack ends."""
_CACHE_SIZE = 32
_UNREADABLE = (OSError, ValueError, RuntimeError)
"""What is raised for a tokenizer or a constraint that cannot be read."""


class GrammarCompiler:
    """Compiles for one tokenizer. Safe to share between threads."""

    def __init__(
        self,
        read_tokenizer: Callable[[], str],
        *,
        end_token_ids: Collection[int],
        vocab_size: int | None = None,
        num_threads: int = 1,
    ) -> None:
        """
        Args:
            read_tokenizer: gives the tokenizer as the text of its tokenizer.json; called once, by `prepare` or by
                the first constraint, even if it cannot be read.
            end_token_ids: tokens that may come where the grammar may end.
            vocab_size: number of the model's logits; the tokenizer's own size unless given.
            num_threads: constraints that are compiled at a time.
        """
        self._read_tokenizer = read_tokenizer
        self._end_token_ids = sorted(end_token_ids)
        self._vocab_size = vocab_size
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="grammar")
        self._tokenizer: LLTokenizer | None = None
        self._unreadable: str | None = None
        """Why the tokenizer cannot be read."""
        self._compiled: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Load what the first constraint would wait for, where the library is installed."""
        if find_spec(_PACKAGE) is None:
            return
        try:
            self._load_tokenizer()
        except _UNREADABLE as error:
            # Who asks for no constraint needs no tokenizer; who does is told.
            _logger.warning("no answer can be bound to a constraint, the tokenizer cannot be read for it: %s", error)

    def translate(self, constraint: Constraint) -> Future[Constraint]:
        """Begin to bring a constraint from GBNF into Lark.

        Raises:
            InvalidRequest: the library is not installed.
        """
        return self._begin(in_lark, constraint)

    def submit(self, constraint: Constraint) -> Future[Grammar]:
        """Begin to compile; the result is a grammar of the caller's own.

        Raises:
            InvalidRequest: the library is not installed.
        """
        return self._begin(self._compile, constraint)

    def _begin(self, work: Callable[[Constraint], Result], constraint: Constraint) -> Future[Result]:
        if find_spec(_PACKAGE) is None:
            raise InvalidRequest(
                f"{constraint.field} needs the package {_PACKAGE}, which is not installed here: "
                "pip install 'lorafleet[serve]'",
                field=constraint.field,
            )
        # The pool starts its threads while work is handed in, with the stack that is set then.
        before = threading.stack_size(_STACK_BYTES)
        try:
            return self._threads.submit(work, constraint)
        finally:
            threading.stack_size(before)

    def _compile(self, constraint: Constraint) -> Grammar:
        with self._lock:
            known = self._compiled.get(constraint)
            if known is not None:
                self._compiled.move_to_end(constraint)
                return known.fork()
        grammar = self._build(constraint)
        with self._lock:
            self._compiled[constraint] = grammar.fork()
            while len(self._compiled) > _CACHE_SIZE:
                self._compiled.popitem(last=False)
        return grammar

    def _build(self, constraint: Constraint) -> Grammar:
        from llguidance import LLMatcher

        try:
            text, tokenizer = _library_grammar(constraint), self._load_tokenizer()
        except _UNREADABLE as error:
            raise constraint.refusal(str(error)) from error
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=_limits())
        if matcher.is_error():
            raise constraint.refusal(matcher_error(matcher))
        grammar = Grammar(matcher)
        if not grammar.look():
            raise constraint.refusal(grammar.error or "no token of the model fits")
        return grammar

    def _load_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._unreadable is not None:
                raise ValueError(self._unreadable)
            if self._tokenizer is None:
                try:
                    self._tokenizer = LLTokenizer(
                        self._read_tokenizer(), n_vocab=self._vocab_size, eos_token=self._end_token_ids or None
                    )
                except _UNREADABLE as error:
                    self._unreadable = str(error)
                    raise
            return self._tokenizer


def read_tokenizer(folder: Path) -> str:
    """The tokenizer of a model folder, as the text of its tokenizer.json with all added tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return str(tokenizer.to_str())


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,  # A few seconds at the very most.
        step_lexer_fuel=100_000,  # With the next, a few milliseconds for each token.
        step_max_items=20_000,
        max_lexer_states=30_000,  # About 2 kB each, and for each answer.
        verbose_errors=False,
    )


def _library_grammar(constraint: Constraint) -> str:
    """The constraint in the library's own form."""
    from llguidance import LLMatcher

    match constraint.kind:
        case ConstraintKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(constraint.text, overrides={"whitespace_pattern": JSON_SPACING})
        case ConstraintKind.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case ConstraintKind.LARK:
            return LLMatcher.grammar_from_lark(constraint.text)
        case ConstraintKind.GBNF:
            raise ValueError("it is in GBNF, which is translated before it comes here: send it in Lark")

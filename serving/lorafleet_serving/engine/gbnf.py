"""GBNF, in which grammars for llama.cpp are written, in Lark, which the engine reads."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from lorafleet_serving.engine.constraint import Constraint, ConstraintKind

_CACHE_SIZE = 32
_MAX_REASON_CHARACTERS = 300


def in_lark(constraint: Constraint) -> Constraint:
    """A constraint in GBNF, in Lark. Slows all threads of the process for as long as it takes.

    Raises:
        InvalidRequest: it is no GBNF, or its rules do not go together.
    """
    assert constraint.kind is ConstraintKind.GBNF, f"{constraint.kind} is no GBNF"
    from llguidance.gbnf_to_lark import GbnfToLarkError

    try:
        text = _translated(constraint.text)
    except IndexError as error:
        raise constraint.refusal("it ends in the middle of an escape sequence") from error
    except RecursionError as error:
        raise constraint.refusal("it is nested too deeply") from error
    except Exception as error:
        # The library raises a bare `Exception` for rules that are missing or there twice.
        if type(error) is not Exception and not isinstance(error, (GbnfToLarkError, ValueError)):
            raise
        raise constraint.refusal(str(error)[:_MAX_REASON_CHARACTERS]) from error
    return replace(constraint, kind=ConstraintKind.LARK, text=text)


@lru_cache(_CACHE_SIZE)  # Every answer to every prompt of a request asks for the same.
def _translated(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    return gbnf_to_lark(text)

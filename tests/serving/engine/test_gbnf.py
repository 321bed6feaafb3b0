"""GBNF in Lark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from lorafleet_serving.engine.constraint import MAX_GBNF_CHARACTERS, Constraint, ConstraintKind
from lorafleet_serving.engine.gbnf import in_lark
from lorafleet_serving.exceptions import InvalidRequest

LONGEST_S = 0.2


def of_gbnf(text: str) -> Constraint:
    return Constraint(ConstraintKind.GBNF, text, "guided_grammar")


def test_rules_are_written_as_lark_has_them() -> None:
    found = in_lark(of_gbnf('root ::= "v" my-number ("." my-number)?\nmy-number ::= [0-9]+'))
    assert (found.kind, found.field) == (ConstraintKind.LARK, "guided_grammar")
    assert found.text.splitlines()[2:] == ['start: "v" MY_NUMBER ("." MY_NUMBER)?', "MY_NUMBER: /[0-9]/+"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("root ::= x", "Rule 'x' not found"),
        ('a ::= "b"', "No 'root' rule found"),
        ('root ::= "\\', "in the middle of an escape sequence"),
        ("root ::= [\\", "in the middle of an escape sequence"),
        ('root ::= "\\q"', "Invalid escape sequence"),
        ('root ::= "\\x4', "Invalid \\x escape"),
        ('root ::= "a" [', "Unexpected end of input"),
        ('root ::= "a', "Unexpected end of input"),
        ('root ::= "a" )', "Expected name"),
        ('root ::= ("a"', "Expected ')'"),
        ('root ::= "a"{2', "Expected ',' or '}'"),
        ('root ::= "a"{\u00b2}', "invalid literal"),
        ('root ::= "a" start\nstart ::= "b"', "Rule 'start' already exists"),
        ('root ::= aB a_b\naB ::= "a"\na_b ::= "b"', "already exists"),
        ("root ::= " + "(" * 1000 + '"a"' + ")" * 1000, "nested too deeply"),
        ('root ::= "a"??', "Expected name"),
        ("root ::= " + "x" * 2000, "Rule 'xxx"),
    ],
)
def test_what_is_no_grammar_is_refused_with_field_and_reason(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        in_lark(of_gbnf(text))
    assert caught.value.field == "guided_grammar"
    assert said in str(caught.value)
    assert len(str(caught.value)) < 400


def test_only_a_short_one_is_read() -> None:
    with pytest.raises(InvalidRequest, match=f"at most {MAX_GBNF_CHARACTERS} are read of GBNF.*in Lark") as caught:
        of_gbnf("#" * (MAX_GBNF_CHARACTERS + 1))
    assert caught.value.field == "guided_grammar"


def costly() -> Iterator[tuple[str, str]]:
    """Chains whose rules are settled one by one, from the last to the first, and what is looked at again each time."""
    yield "chain", chain(MAX_GBNF_CHARACTERS // 6)
    num_links = MAX_GBNF_CHARACTERS // 12
    again = MAX_GBNF_CHARACTERS - len(chain(num_links)) - 16
    for name, unit in (
        ("characters", "."),
        ("literals", '""'),
        ("options", "|"),
        ("repetitions", ".?"),
        ("groups", "()"),
    ):
        yield name, chain(num_links, unit * (again // len(unit)))
    yield "comments", "#\n" * (MAX_GBNF_CHARACTERS // 2 - 8) + 'root ::= "a"'
    depth = 150
    yield "nesting", "root ::= " + "(.|" * depth + "." * (MAX_GBNF_CHARACTERS - 4 * depth - 9) + ")" * depth


def chain(num_links: int, again: str = "") -> str:
    """Links of six characters, and `again` in a rule that is settled last."""
    names = [chr(0x4E00 + place) for place in range(num_links - 4)]
    links = "".join(f"{name}::={following}\n" for name, following in pairwise(names))
    return f"root::=x\nx::={again}{names[0]}\n{links}{names[-1]}::=.\n"


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in costly()])
def test_the_longest_one_holds_the_process_up_for_a_moment_only(text: str) -> None:
    started = time.thread_time()
    assert in_lark(of_gbnf(text)).kind is ConstraintKind.LARK
    assert time.thread_time() - started < LONGEST_S

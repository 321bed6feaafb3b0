"""GBNF in Lark."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from llguidance import gbnf_to_lark

from lorafleet_serving.engine.constraint import MAX_GBNF_CHARACTERS, Constraint, ConstraintKind
from lorafleet_serving.engine.gbnf import in_lark
from lorafleet_serving.exceptions import InvalidRequest

MOST_CALLS = 1_200_000
"""Of functions, for the longest text: about a tenth of a second."""


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


def test_a_fault_of_our_own_is_not_told_as_one_of_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    def translate(text: str) -> str:
        raise TypeError(text)

    monkeypatch.setattr(gbnf_to_lark, "gbnf_to_lark", translate)
    with pytest.raises(TypeError):
        in_lark(of_gbnf('root ::= "of no other test"'))


def test_only_a_short_one_is_read() -> None:
    with pytest.raises(InvalidRequest, match=f"at most {MAX_GBNF_CHARACTERS} are read of GBNF.*in Lark") as caught:
        of_gbnf("#" * (MAX_GBNF_CHARACTERS + 1))
    assert caught.value.field == "guided_grammar"


def costly(length: int) -> Iterator[tuple[str, str]]:
    """Chains whose rules are settled one by one, from the last to the first, and what is looked at again each time."""
    yield "chain", chain(length // 6)
    num_links = length // 12
    again = length - len(chain(num_links)) - 16
    for name, unit in (
        ("characters", "."),
        ("literals", '""'),
        ("options", "|"),
        ("repetitions", ".?"),
        ("groups", "()"),
    ):
        yield name, chain(num_links, unit * (again // len(unit)))
    yield "comments", "#\n" * (length // 2 - 8) + 'root ::= "a"'
    depth = 150
    yield "nesting", "root ::= " + "(.|" * depth + "." * (length - 4 * depth - 9) + ")" * depth


def chain(num_links: int, again: str = "") -> str:
    """Links of six characters, and `again` in a rule that is settled last."""
    names = [chr(0x4E00 + place) for place in range(num_links - 4)]
    links = "".join(f"{name}::={following}\n" for name, following in pairwise(names))
    return f"root::=x\nx::={again}{names[0]}\n{links}{names[-1]}::=.\n"


def num_calls(text: str) -> int:
    """Calls of functions, the interpreter's own among them, that a translation takes."""
    calls = Counter[str]()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: calls.update((event,)))
    try:
        assert in_lark(of_gbnf(text)).kind is ConstraintKind.LARK
    finally:
        sys.setprofile(before)
    return calls["call"] + calls["c_call"]


@pytest.mark.parametrize("name", [name for name, _ in costly(MAX_GBNF_CHARACTERS)])
def test_the_longest_one_is_bounded_work_which_grows_by_the_square_at_most(name: str) -> None:
    half, whole = (num_calls(dict(costly(length))[name]) for length in (MAX_GBNF_CHARACTERS // 2, MAX_GBNF_CHARACTERS))
    assert whole < MOST_CALLS
    assert whole < 4 * half

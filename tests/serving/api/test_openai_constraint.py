"""What binds an answer, read off the fields of a request."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from lorafleet_serving.api.openai_constraint import constraint_of
from lorafleet_serving.api.schemas import CompletionRequest, StructuredOutputs
from lorafleet_serving.engine.constraint import MAX_CONSTRAINT_CHARACTERS, Constraint, ConstraintKind
from lorafleet_serving.exceptions import InvalidRequest
from tests.serving.pod_process import PodProcess


def of_grammar(text: str) -> Constraint:
    found = constraint_of(CompletionRequest(prompt="x", guided_grammar=text))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('root ::= "a"', ConstraintKind.GBNF),
        ('root::="a"', ConstraintKind.GBNF),
        ('\n\r\n \tmy-rule\t ::= "a"', ConstraintKind.GBNF),
        ('# The answer\n\nroot ::= x\nx ::= "a"', ConstraintKind.GBNF),
        ('start: "a"', ConstraintKind.LARK),
        ('start: "root ::= x"', ConstraintKind.LARK),
        ('root\n::= "a"', ConstraintKind.LARK),
        ("", ConstraintKind.LARK),
    ],
)
def test_a_grammar_is_gbnf_if_a_line_begins_a_rule_of_it(text: str, kind: ConstraintKind) -> None:
    assert of_grammar(text) == Constraint(kind, text)
    nested = CompletionRequest(prompt="x", structured_outputs=StructuredOutputs(grammar=text))
    assert constraint_of(nested) == Constraint(kind, text)


@pytest.mark.parametrize("unit", ["\n", "\r", "\r\n", " ", "\t\n", "a", "-", "a ", "a\n", "a :", "a ::"])
@pytest.mark.parametrize("length", [MAX_CONSTRAINT_CHARACTERS, 4 << 20])
def test_a_grammar_is_looked_at_in_a_time_that_its_length_bounds(unit: str, length: int) -> None:
    text = (unit * length)[:length]
    started = time.process_time()
    with suppress(InvalidRequest):
        of_grammar(text)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("root ::= x", "Rule 'x' not found"),
        ('a ::= "b"', "No 'root' rule"),
        ('root ::= "\\', "in the middle of an escape sequence"),
        ("root ::= " + "(" * 1000, "nested too deeply"),
        ("root ::= x\n" * 300, "of GBNF"),
        ("\n" * 70_000, "at most 65536"),
        ("\n" * 60_000, "cannot be followed"),
    ],
)
def test_a_grammar_that_is_none_is_told_why(pod: PodProcess, text: str, said: str) -> None:
    for field, fields in (
        ("guided_grammar", {"guided_grammar": text}),
        ("structured_outputs", {"structured_outputs": {"grammar": text}}),
    ):
        response = pod.http.post("/v1/completions", json={"prompt": "x", **fields})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (422, field), error
        assert said in error["message"]

"""What binds an answer, read off the fields of a request."""

from __future__ import annotations

import pytest

from lorafleet_serving.api import openai_constraint as module
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
@pytest.mark.parametrize("behind", ["\nroot ::= x", "\nroot\n::= x\n root\t::= x"])
def test_looking_for_a_rule_keeps_to_its_line(unit: str, behind: str) -> None:
    text = unit * 100 + behind
    found = module._GBNF_RULE.search(text)
    assert found is not None
    assert found.span() == (text.rindex("\n") + 1, len(text) - len(" x"))


def test_a_grammar_that_is_too_long_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pattern:
        def search(self, text: str) -> None:
            searched.append(len(text))

    searched: list[int] = []
    monkeypatch.setattr(module, "_GBNF_RULE", Pattern())
    of_grammar("\n" * MAX_CONSTRAINT_CHARACTERS)
    with pytest.raises(InvalidRequest, match="at most"):
        of_grammar("\n" * (MAX_CONSTRAINT_CHARACTERS + 1))
    assert searched == [MAX_CONSTRAINT_CHARACTERS]


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

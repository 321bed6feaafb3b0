"""What the front does with a constraint before the engine sees it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from llguidance import gbnf_to_lark

from lorafleet_serving.constraint_check import ConstraintCheck
from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.exceptions import InvalidRequest
from lorafleet_serving.tokenizer import PodTokenizer

TRANSLATE = gbnf_to_lark.gbnf_to_lark


@pytest.fixture(scope="module")
def check(tiny_model: Path) -> ConstraintCheck:
    tokenizer = PodTokenizer(tiny_model)
    return ConstraintCheck(tokenizer)


async def test_what_is_prepared_is_not_read_for_the_first_constraint(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    tokenizer = PodTokenizer(tiny_model)
    read = tokenizer.to_json

    def to_json() -> str:
        reads.append("once")
        return read()

    monkeypatch.setattr(tokenizer, "to_json", to_json)
    prepared = ConstraintCheck(tokenizer)
    prepared.prepare()
    assert reads == ["once"]
    await prepared.check(Constraint(ConstraintKind.REGEX, "a+"))
    assert reads == ["once"]


async def test_gbnf_is_translated_once_and_not_on_the_loop(
    check: ConstraintCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def translate(text: str) -> str:
        threads.append(threading.current_thread())
        return TRANSLATE(text)

    monkeypatch.setattr(gbnf_to_lark, "gbnf_to_lark", translate)
    given = Constraint(ConstraintKind.GBNF, 'root ::= "once" | "twice"', "guided_grammar")
    found = [await check.check(given) for _ in range(3)]
    assert {(item.kind, item.field) for item in found} == {(ConstraintKind.LARK, "guided_grammar")}
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_what_the_engine_reads_stays_as_it_is(check: ConstraintCheck) -> None:
    for kind, text in ((ConstraintKind.REGEX, "a+"), (ConstraintKind.LARK, 'start: "a"')):
        given = Constraint(kind, text)
        assert await check.check(given) is given


@pytest.mark.parametrize("text", ["root ::= x", 'a ::= "b"', 'root ::= "\\', 'root ::= x\nx ::= "\u00e9"'])
async def test_gbnf_that_cannot_be_followed_is_refused(check: ConstraintCheck, text: str) -> None:
    with pytest.raises(InvalidRequest, match="guided_grammar cannot be followed") as caught:
        await check.check(Constraint(ConstraintKind.GBNF, text, "guided_grammar"))
    assert caught.value.field == "guided_grammar"


async def test_gbnf_needs_the_library_too(check: ConstraintCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_serving.engine.grammar_compiler.find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="needs the package llguidance"):
        await check.check(Constraint(ConstraintKind.GBNF, 'root ::= "a"', "guided_grammar"))

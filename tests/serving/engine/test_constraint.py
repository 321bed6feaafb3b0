"""Constrained answers of the engine: whatever a random model wants to say, what it says fits."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from transformers import AutoTokenizer

from lorafleet_serving.engine.config import DType, EngineConfig
from lorafleet_serving.engine.constraint import MAX_CONSTRAINT_CHARACTERS, Constraint, ConstraintKind
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.gbnf import in_lark
from lorafleet_serving.engine.grammar_compiler import GrammarCompiler
from lorafleet_serving.engine.request import FinishReason, GenerationRequest, SamplingParams, TokenOutput
from lorafleet_serving.exceptions import InvalidRequest

Sampling = Mapping[str, Any]
NUM_TOKENS = 120
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(EngineConfig(tiny_model, dtype=DType.FP32, kv_cache_bytes=8 << 20, num_threads=1))


@pytest.fixture(scope="module")
def decode(tiny_model: Path) -> Callable[[list[int]], str]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return lambda token_ids: str(tokenizer.decode(token_ids, skip_special_tokens=True))


def of_json(schema: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema))


def of_regex(text: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, text)


def of_lark(*lines: str) -> Constraint:
    return Constraint(ConstraintKind.LARK, "\n".join(lines)[:MAX_CONSTRAINT_CHARACTERS])


def of_gbnf(text: str) -> Constraint:
    return in_lark(Constraint(ConstraintKind.GBNF, text))


def request(name: str, constraint: Constraint | None, **sampling: Any) -> GenerationRequest:
    options: dict[str, Any] = {"max_new_tokens": NUM_TOKENS, "temperature": 1.0, "seed": 1, **sampling}
    return GenerationRequest(name, (5, 9, 11), SamplingParams(constraint=constraint, **options))


def run(engine: Engine, *requests: GenerationRequest) -> dict[str, list[TokenOutput]]:
    for item in requests:
        engine.add_request(item)
    outputs: dict[str, list[TokenOutput]] = {item.request_id: [] for item in requests}
    while engine.has_unfinished():
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    return outputs


def answer(outputs: list[TokenOutput]) -> list[int]:
    return [output.token_id for output in outputs if output.token_id is not None]


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["a", "b", "size", "x y"])
    leaves = st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string"}, {"type": "number"}]),
        st.builds(
            lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
            st.integers(-99, 99),
            st.integers(0, 500),
        ),
        st.builds(
            lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
            st.integers(0, 3),
            st.integers(0, 5),
        ),
        st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.integers(-5, 5)),
        st.sampled_from([{"type": "string", "pattern": "^[a-c]{1,3}-[0-9]+$"}, {"type": "string", "format": "date"}]),
        st.builds(
            lambda options: {"enum": options},
            st.lists(st.sampled_from(["on", 3, None, True, 'q"', 1.5]), min_size=1, unique=True),
        ),
        st.builds(lambda value: {"const": value}, st.sampled_from([{"k": [1]}, "say", 0, []])),
    )

    def grow(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        objects = st.builds(
            lambda fields, cut, extra: {
                "type": "object",
                "properties": fields,
                "required": sorted(fields)[:cut],
                "additionalProperties": extra,
            },
            st.dictionaries(names, inner, max_size=3),
            st.integers(0, 3),
            st.booleans(),
        )
        arrays = st.builds(
            lambda items, low, span: {"type": "array", "items": items, "minItems": low, "maxItems": low + span},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        )
        return st.one_of(
            objects, arrays, st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3))
        )

    return st.recursive(leaves, grow, max_leaves=5)


def _is_date_of_a_leap_year(value: object) -> bool:
    """A constraint knows how many days a month has, and not which years have a 29 February."""
    return not isinstance(value, str) or bool(date.fromisoformat(re.sub(r"^\d{4}-", "2000-", value)))


FORMATS = jsonschema.FormatChecker()
FORMATS.checks("date", raises=ValueError)(_is_date_of_a_leap_year)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(schemas(), min_size=4, max_size=8), seed=st.integers(0, 1000))
def test_an_answer_that_ends_is_valid_for_its_schema(
    engine: Engine, decode: Callable[[list[int]], str], batch: list[dict[str, Any]], seed: int
) -> None:
    requests = [request(str(number), of_json(schema), seed=seed + number) for number, schema in enumerate(batch)]
    for number, outputs in run(engine, *requests, request("free", None)).items():
        reason = outputs[-1].finish_reason
        assert reason is not FinishReason.ERROR, outputs[-1].error
        if number != "free" and reason is not FinishReason.LENGTH:
            text = decode(answer(outputs))
            jsonschema.validate(json.loads(text), batch[int(number)], format_checker=FORMATS)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (of_regex(r"[a-f]{3,9}\.(com|org)"), r"[a-f]{3,9}\.(com|org)"),
        (Constraint.choice(["yes", "no", 'so "so" \\ ::= so'], "guided_choice"), r'yes|no|so "so" \\ ::= so'),
        (of_lark('start: "<" WORD ("," WORD)* ">"', "WORD: /[a-z]{2,4}/"), r"<[a-z]{2,4}(,[a-z]{2,4})*>"),
        (of_gbnf('root ::= "v" [0-9]+ ("." [0-9])?'), r"v\d+(\.\d)?"),
    ],
)  # fmt: skip
def test_every_kind_of_constraint_is_followed(
    engine: Engine, decode: Callable[[list[int]], str], constraint: Constraint, pattern: str
) -> None:
    requests = [request(str(seed), constraint, seed=seed, temperature=1.5) for seed in range(6)]
    ended = 0
    for outputs in run(engine, *requests).values():
        if outputs[-1].finish_reason is not FinishReason.LENGTH:
            ended += 1
            assert re.fullmatch(pattern, decode(answer(outputs)))
    assert ended >= 2


def test_free_rows_answer_as_if_alone(engine: Engine) -> None:
    alone = run(engine, request("free", None))["free"]
    together = run(engine, request("bound", of_json(PERSON)), request("free", None), request("more", of_regex("a+")))
    assert answer(together["free"]) == answer(alone)


def test_a_bound_answer_does_not_depend_on_preemption(tiny_model: Path) -> None:
    """Each needs most of the cache, so that they push each other out."""
    small = Engine(
        EngineConfig(tiny_model, dtype=DType.FP32, kv_cache_bytes=88 << 10, num_threads=1, prefix_caching=False)
    )
    rows = [request(str(seed), of_regex("[a-z ]{60,80}"), seed=seed) for seed in range(4)]
    alone = {item.request_id: answer(run(small, item)[item.request_id]) for item in rows}
    computed = small.stats().num_steps
    together = run(small, *rows)
    assert {name: answer(outputs) for name, outputs in together.items()} == alone
    assert small.stats().num_steps - computed > max(map(len, alone.values())) + 4, "nothing was preempted"


def test_seeds_repeat_a_bound_answer_and_logprobs_are_the_models_own(engine: Engine) -> None:
    bound = request("a", of_regex("[0-9]{8}"), num_logprobs=2)
    first = run(engine, bound)["a"]
    assert answer(run(engine, bound)["a"]) == answer(first)
    assert [len(output.alternatives) for output in first] == [2] * len(first)
    assert any(output.token_id not in {item.token_id for item in output.alternatives} for output in first)


def test_an_answer_ends_as_soon_as_nothing_can_follow(engine: Engine, decode: Callable[[list[int]], str]) -> None:
    outputs = run(engine, request("a", Constraint.choice(["the end"], "guided_choice")))["a"]
    assert (decode(answer(outputs)), outputs[-1].finish_reason) == ("the end", FinishReason.COMPLETE)


@pytest.mark.parametrize("sampling", [{"min_new_tokens": 40}, {"ignore_eos": True}])
def test_a_least_length_holds_as_long_as_the_grammar_can_go_on(
    engine: Engine, decode: Callable[[list[int]], str], sampling: Sampling
) -> None:
    biased = {"logit_bias": ((0, 100.0),), "max_new_tokens": 60, **sampling}
    outputs = run(engine, request("long", of_regex("[ab]*"), **biased), request("short", of_regex("[ab]{2}"), **biased))
    assert len(answer(outputs["long"])) >= 40
    assert re.fullmatch("[ab]{2}", decode(answer(outputs["short"])))


def test_the_end_comes_only_where_the_grammar_may_end(engine: Engine, decode: Callable[[list[int]], str]) -> None:
    """The end token is by far the most likely one."""
    outputs = run(engine, request("a", of_regex("ab(c|d)e?"), logit_bias=((0, 100.0),)))["a"]
    assert decode(answer(outputs)) in {"abc", "abd"}
    assert outputs[-1].finish_reason is FinishReason.EOS


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (of_json({"type": "nothing"}), "Invalid type"),
        (of_json({"allOf": [{"type": "string"}, {"type": "integer"}]}), "Unsatisfiable"),
        (of_json({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Constraint(ConstraintKind.JSON_SCHEMA, "[1, "), "EOF"),
        (of_regex("(a"), "regex"),
        (of_regex("[^\\x00-\\U0010FFFF]"), "no token of the model fits"),
        (of_regex("\u00e9+"), "no token of the model fits"),
        (of_lark('start: "a" other'), "other"),
        (of_lark('start: start "a"'), "no token of the model fits"),
        (of_lark("start: R0", *(f"R{i}: R{i + 1} R{i + 1}" for i in range(60)), 'R60: "a"'), "too big"),
        (Constraint(ConstraintKind.GBNF, 'root ::= "a"'), "send it in Lark"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_with_its_field(engine: Engine, constraint: Constraint, said: str) -> None:
    named = Constraint(constraint.kind, constraint.text, "guided_grammar")
    outputs = run(engine, request("bad", named), request("good", of_regex("a{2}")))
    (failed,) = outputs["bad"]
    assert (failed.finish_reason, failed.error_field) == (FinishReason.ERROR, "guided_grammar")
    assert said in str(failed.error)
    assert outputs["good"][-1].finish_reason is FinishReason.COMPLETE


def test_a_dead_end_on_the_way_ends_that_answer_alone(engine: Engine) -> None:
    """The tokenizer has no way to write the last letter."""
    outputs = run(engine, request("bad", of_regex("abc\u00e9")), request("good", of_regex("a{5}")))
    assert outputs["bad"][-1].finish_reason is FinishReason.ERROR
    assert outputs["bad"][-1].error_field == "structured_outputs"
    assert outputs["good"][-1].finish_reason is FinishReason.COMPLETE


def test_a_request_may_leave_while_its_constraint_is_compiled(engine: Engine) -> None:
    slow = of_json({"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(900)}})
    engine.add_request(request("slow", slow))
    engine.abort("slow")
    (end,) = engine.step()
    assert end.finish_reason is FinishReason.ABORTED
    assert not engine.has_unfinished()
    engine.check_integrity()


def test_a_constraint_has_a_greatest_length() -> None:
    with pytest.raises(InvalidRequest, match=str(MAX_CONSTRAINT_CHARACTERS)) as caught:
        Constraint(ConstraintKind.REGEX, "a" * (MAX_CONSTRAINT_CHARACTERS + 1), "guided_regex")
    assert caught.value.field == "guided_regex"


def test_an_engine_without_the_library_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_serving.engine.grammar_compiler.find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="llguidance") as caught:
        engine.add_request(request("bound", of_regex("a")))
    assert caught.value.field == "structured_outputs"
    assert not engine.has_unfinished()
    engine.check_integrity()


def hostile() -> Iterator[tuple[str, Constraint]]:
    links = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(1300)}
    yield "references", of_json({"$ref": "#/$defs/d0", "$defs": {**links, "d1300": {"type": "string"}}})
    yield "rules", of_lark("start: r0", *(f"r{i}: r{i + 1}" for i in range(4500)), 'r4500: "a"')
    yield "tokens", of_lark("start: R0", *(f'R{i}: R{i + 1} "b"' for i in range(3300)), 'R3300: "a"')
    yield "translated", of_gbnf("root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(110)) + 'r110 ::= "a"')
    yield "parentheses", of_lark("start: " + "(" * 30000 + '"a"' + ")" * 30000)
    yield "groups", of_regex("(" * 30000 + "a" + ")" * 30000)
    yield "counts", of_regex("((a{1,300}){1,300}){1,300}")
    yield "automaton", of_regex("(.*a){30}(a|b)*a(a|b){24}")
    yield "products", of_json({"allOf": [{"anyOf": [{"required": [f"p{i}{j}"]} for j in range(8)]} for i in range(8)]})
    yield "members", of_json({"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(1500)}})
    yield "length", of_json({"const": "x" * 60000})


@pytest.mark.parametrize(("constraint"), [pytest.param(item, id=name) for name, item in hostile()])
def test_hostile_constraints_end_in_bounded_work(engine: Engine, constraint: Constraint) -> None:
    outputs = run(engine, request("hostile", constraint, max_new_tokens=20))["hostile"]
    assert outputs[-1].finish_reason is not None


def test_compiled_constraints_are_shared(tiny_model: Path) -> None:
    reads: list[str] = []

    def read() -> str:
        reads.append("once")
        return (tiny_model / "tokenizer.json").read_text()

    compiler = GrammarCompiler(read, end_token_ids=(0,), num_threads=1)
    grammars = [compiler.submit(of_json(PERSON)).result() for _ in range(3)]
    assert reads == ["once"]
    for _ in range(5):
        token_id = random.Random(0).choice([i for i in range(160) if grammars[0].mask[i // 8] >> i % 8 & 1])
        grammars[0].accept(token_id)
        grammars[0].look()
    grammars[1].look()
    assert grammars[1].mask != grammars[0].mask


def test_a_tokenizer_that_the_library_refuses_is_read_once_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    reads: list[str] = []

    def read() -> str:
        reads.append("once")
        return "{}"

    compiler = GrammarCompiler(read, end_token_ids=(0,))
    assert not caplog.messages
    compiler.prepare()
    assert "error loading tokenizer" in caplog.text
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="cannot be followed: error loading tokenizer"):
            compiler.submit(of_json(PERSON)).result()
    assert reads == ["once"]

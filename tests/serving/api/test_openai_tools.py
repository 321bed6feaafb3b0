"""Calls of tools: bound to happen, and found in what a model writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from lorafleet_serving.api.chat_schemas import ChatRequest
from lorafleet_serving.api.openai_tools import Call, CallFinder, ToolUse, tool_use
from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.engine.grammar_compiler import GrammarCompiler, read_tokenizer
from lorafleet_serving.exceptions import InvalidRequest

CITY = {
    "$defs": {"city": {"enum": ["Rome", "Oslo"]}},
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
}
LOOK = {"name": "look", "parameters": {**CITY, "required": ["city"], "additionalProperties": False}}
PING: dict[str, Any] = {"name": "ping", "parameters": {"type": "object", "additionalProperties": False}}

CALL_LOOK = '{"name": "look", "arguments": {"city": "Rome"}}'
CALL_PING = '{"name": "ping", "arguments": {}}'
BARE_LIST = f"[{CALL_LOOK}, {CALL_PING}]"


def tagged(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


def use(*, tagged: bool = True, strict: bool = False, **fields: Any) -> ToolUse:
    tools = [{"type": "function", "function": {**function, "strict": strict}} for function in (LOOK, PING)]
    body = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], "tools": tools, **fields})
    found = tool_use(body, tagged=tagged)
    assert found is not None
    return found


def found_in(pieces: Sequence[str], use: ToolUse) -> tuple[str, list[tuple[str, Any]]]:
    finder = CallFinder(use)
    parts = [part for piece in pieces for part in finder.add(piece)] + list(finder.flush())
    calls = [(part.name, json.loads(part.arguments)) for part in parts if isinstance(part, Call)]
    return "".join(part for part in parts if isinstance(part, str)), calls


LOOKED: tuple[str, Any] = ("look", {"city": "Rome"})
PINGED: tuple[str, Any] = ("ping", {})


@pytest.mark.parametrize(
    ("text", "is_tagged", "said", "calls"),
    [
        (tagged(CALL_LOOK), True, "", [LOOKED]),
        (f"Let me see.\n{tagged(CALL_LOOK)}\n{tagged(CALL_PING)}\n", True, "Let me see.", [LOOKED, PINGED]),
        ("no tools: a < b, <tool", True, "no tools: a < b, <tool", []),
        ("spaces stay \n", True, "spaces stay \n", []),
        (f"<tool_call>\n{CALL_PING}", True, "", [PINGED]),
        ('<tool_call>\n{"name": "pi', True, '<tool_call>\n{"name": "pi', []),
        (tagged('{"name": "other", "arguments": {}}'), True, tagged('{"name": "other", "arguments": {}}'), []),
        (tagged('{"name": "ping", "arguments": 7}'), True, tagged('{"name": "ping", "arguments": 7}'), []),
        (tagged("[1"), True, tagged("[1"), []),
        (CALL_LOOK, False, "", [LOOKED]),
        (f"  {BARE_LIST}", False, "", [LOOKED, PINGED]),
        ('{"name": "look", "parameters": {"city": "Rome"}}', False, "", [LOOKED]),
        ('{"answer": 3}', False, '{"answer": 3}', []),
        ("[]", False, "[]", []),
        (f"Sure: {CALL_LOOK}", False, f"Sure: {CALL_LOOK}", []),
    ],
)
def test_calls_are_told_from_text(text: str, is_tagged: bool, said: str, calls: list[tuple[str, Any]]) -> None:
    assert found_in([text], use(tagged=is_tagged)) == (said, calls)
    assert found_in(list(text), use(tagged=is_tagged)) == (said, calls)


@given(
    parts=st.lists(
        st.sampled_from(["say ", "\n", "<tool", "<tool_call>", "</tool_call>", "{", tagged(CALL_PING), CALL_LOOK])
    ),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    is_tagged=st.booleans(),
)
def test_it_does_not_matter_how_a_text_is_cut(parts: list[str], cuts: list[int], is_tagged: bool) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert found_in(pieces, use(tagged=is_tagged)) == found_in([text], use(tagged=is_tagged))


def test_one_call_is_one_call() -> None:
    one = use(parallel_tool_calls=False)
    assert found_in([tagged(CALL_LOOK) + tagged(CALL_PING)], one) == ("", [LOOKED])
    assert found_in([BARE_LIST], use(tagged=False, parallel_tool_calls=False)) == ("", [LOOKED])


def test_calls_have_ids_of_their_own_that_every_template_takes() -> None:
    parts = list(CallFinder(use()).add(tagged(CALL_PING) + tagged(CALL_PING)))
    ids = {part.id for part in parts if isinstance(part, Call)}
    assert [len(call_id) for call_id in ids] == [9, 9]


@pytest.fixture(scope="module")
def compiler(tiny_model: Path) -> GrammarCompiler:
    return GrammarCompiler(lambda: read_tokenizer(tiny_model), end_token_ids=(0,))


@pytest.mark.parametrize(
    ("found", "right", "wrong"),
    [
        (use(tool_choice="required"), [tagged(CALL_LOOK), tagged(CALL_LOOK) + "\n" + tagged(CALL_PING)], ["hi"]),
        (use(tool_choice="required", tagged=False), [CALL_LOOK, BARE_LIST], ["hi", "[]", tagged(CALL_PING)]),
        (
            use(tool_choice={"type": "function", "function": {"name": "ping"}}),
            [tagged(CALL_PING)],
            [tagged(CALL_LOOK), f"{tagged(CALL_PING)}\n{tagged(CALL_PING)}"],
        ),
        (
            use(strict=True),
            ["hi", f"hi {tagged(CALL_LOOK)}", f"{tagged(CALL_LOOK)}\n{tagged(CALL_PING)} bye"],
            [tagged(CALL_LOOK.replace("Rome", "Paris")), "hi <tool_call>x"],
        ),
        (use(strict=True, tagged=False), ["hi", CALL_LOOK], ['{"a": 1}', CALL_LOOK.replace("Rome", "Paris")]),
    ],
)  # fmt: skip
def test_a_bound_answer_is_calls_that_fit(
    compiler: GrammarCompiler, tiny_model: Path, found: ToolUse, right: list[str], wrong: list[str]
) -> None:
    constraint = found.constraint(None)
    assert constraint is not None
    assert all(takes(compiler, constraint, text) for text in right)
    assert not any(takes(compiler, constraint, text) for text in wrong)


def takes(compiler: GrammarCompiler, constraint: Constraint, text: str) -> bool:
    """Whether an answer may be this text and end."""
    from tests.serving.tiny_model import make_tiny_tokenizer

    grammar = compiler.submit(constraint).result()
    for token_id in make_tiny_tokenizer().encode(text):
        if not grammar.look() or not grammar.mask[token_id // 8] >> token_id % 8 & 1:
            return False
        grammar.accept(token_id)
    return grammar.is_over or (grammar.look() and bool(grammar.mask[0] & 1))


def test_an_answer_may_be_calls_or_the_wanted_json(compiler: GrammarCompiler) -> None:
    content = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps({"enum": ["yes"]}), "response_format")
    both = use().constraint(content)
    assert both is not None
    assert takes(compiler, both, '"yes"')
    assert takes(compiler, both, tagged(CALL_LOOK))
    assert not takes(compiler, both, "yes")


def test_free_answers_are_not_bound() -> None:
    assert use().constraint(None) is None


def body(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **fields})


def test_tools_that_are_not_to_be_called_are_left_out() -> None:
    tools = [{"type": "function", "function": PING}]
    assert tool_use(body(tools=tools, tool_choice="none"), tagged=True) is None
    assert tool_use(body(tools=[]), tagged=True) is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": PING}] * 2}, "tools"),
        (
            {
                "tools": [{"type": "function", "function": PING}],
                "tool_choice": {"type": "function", "function": {"name": "other"}},
            },
            "tool_choice",
        ),
    ],
)
def test_tools_that_do_not_go_together_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tool_use(body(**fields), tagged=True)
    assert caught.value.field == field


def test_other_bounds_do_not_go_with_tools() -> None:
    with pytest.raises(InvalidRequest) as caught:
        use().constraint(Constraint(ConstraintKind.REGEX, "a", "guided_regex"))
    assert caught.value.field == "guided_regex"

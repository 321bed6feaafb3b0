"""Conversations as text: templates that know tools, templates that do not, and templates that go on for ever."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lorafleet_serving.chat_template import ChatTemplate
from lorafleet_serving.exceptions import InvalidRequest
from tests.serving.tiny_model import make_tiny_tokenizer

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + PLAIN
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "what is up?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "stars", "tool_call_id": "1"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tiny_tokenizer()


def test_a_template_with_tools_gets_them_as_they_are(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer, WITH_TOOLS, is_trusted=True)
    text = template.render(CONVERSATION, TOOLS)
    assert text == "[look]<user>what is up?<assistant><tool>stars"
    assert not template.tags_calls
    assert ChatTemplate(tokenizer, WITH_TOOLS + "<tool_call>", is_trusted=True).tags_calls


def test_a_template_without_tools_is_told_of_them_in_words(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer, PLAIN, is_trusted=True)
    text = template.render(CONVERSATION, TOOLS)
    assert template.tags_calls
    assert text.startswith("<system>You can call tools.")
    assert '{"name": "look", "parameters": {"type": "object"}}' in text
    assert '<assistant><tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>' in text
    assert text.endswith("<user><tool_response>\nstars\n</tool_response>")


def test_words_about_tools_join_the_systems_own(tokenizer: Any) -> None:
    template = ChatTemplate(tokenizer, PLAIN, is_trusted=True)
    text = template.render([{"role": "system", "content": "be brief"}, *CONVERSATION], TOOLS)
    assert text.startswith("<system>be brief\n\nYou can call tools.")
    assert text.count("<system>") == 1


def test_a_conversation_without_tools_stays_as_it_is(tokenizer: Any) -> None:
    assert ChatTemplate(tokenizer, PLAIN, is_trusted=True).render(CONVERSATION[:1], None) == "<user>what is up?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recurs"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        ("{% for", "refuses"),
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ messages[7].content.x }}", "refuses"),
    ],
)
def test_an_adapters_template_cannot_do_harm(tokenizer: Any, text: str, said: str) -> None:
    before = sys.gettrace()
    with pytest.raises(InvalidRequest, match=said) as caught:
        ChatTemplate(tokenizer, text, is_trusted=False).render(CONVERSATION, None)
    assert caught.value.field == "messages"
    assert sys.gettrace() is before

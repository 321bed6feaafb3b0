from __future__ import annotations

import json

import pytest

from lorafleet_contract.exceptions import InvalidManifest, InvalidTemplate
from lorafleet_contract.prompt import PromptBlock, render_template, template_variables

BLOCK = PromptBlock(
    template="Text: {{ text }} ({{ lang }})\n",
    variables=("lang", "text"),
    stop=("\n",),
    examples=({"text": "a", "lang": "en"},),
)


def test_block_renders_its_template_and_keeps_the_last_newline() -> None:
    assert BLOCK.render({"text": "hello", "lang": "en"}) == "Text: hello (en)\n"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"text": "x"}, r"missing \['lang'\], unknown \[\]"),
        ({"text": "x", "lang": "en", "tone": "y"}, r"missing \[\], unknown \['tone'\]"),
    ],
)
def test_values_that_do_not_fit_are_named(values: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidTemplate, match=says):
        BLOCK.render(values)


def test_block_survives_json() -> None:
    assert PromptBlock.from_json(json.loads(json.dumps(BLOCK.to_json()))) == BLOCK


@pytest.mark.parametrize("change", [{"surprise": 1}, None])
def test_block_with_wrong_fields_is_refused(change: dict[str, int] | None) -> None:
    data = {"template": "x"} if change is None else BLOCK.to_json() | change
    with pytest.raises(InvalidManifest, match="prompt block"):
        PromptBlock.from_json(data)


def test_variables_of_a_template_are_sorted_and_leave_out_its_own() -> None:
    template = "{% for item in items %}{{ item }}{{ loop.index }}{% endfor %}{% set x = a %}{{ x }}"
    assert template_variables(template) == ("a", "items")


@pytest.mark.parametrize("template", ["{{ a", "{% for %}", "{{ a | nofilter }}"])
def test_malformed_template_is_refused(template: str) -> None:
    with pytest.raises(InvalidTemplate):
        render_template(template, {"a": 1})


@pytest.mark.parametrize(
    "template",
    [
        "{{ a.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ a.append(1) }}",
        "{% include 'secret' %}",
        "{{ nobody }}",
    ],
)
def test_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(InvalidTemplate):
        render_template(template, {"a": []})


@pytest.mark.parametrize("template", ["{{ a + 1 }}", "{{ a | round }}", "{{ 1 / 0 }}", "{{ a['k'][0] }}"])
def test_value_that_the_template_is_not_made_for_is_an_error_of_ours(template: str) -> None:
    with pytest.raises(InvalidTemplate):
        render_template(template, {"a": "x"})


def test_text_of_a_value_is_never_taken_for_a_template() -> None:
    assert render_template("{{ a }}", {"a": "{{ b }}<x>&"}) == "{{ b }}<x>&"

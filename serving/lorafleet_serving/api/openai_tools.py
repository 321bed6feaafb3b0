"""Tools of a chat request: how an answer is bound to call them, and how calls are found in its text."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lorafleet_serving.api.chat_schemas import ChatRequest, NamedToolChoice, ToolField
from lorafleet_serving.chat_template import CALL_END, CALL_START
from lorafleet_serving.engine.constraint import JSON_SPACING, Constraint, ConstraintKind, lark_literal
from lorafleet_serving.exceptions import InvalidRequest

Json = dict[str, Any]

_ID_CHARACTERS = 9
"""Templates of Mistral take no call id of another length."""
_ARGUMENT_KEYS = ("arguments", "parameters")
"""Names that models were taught for the arguments of a call."""


@dataclass(frozen=True)
class ToolUse:
    """The tools that an answer may call, and how."""

    tools: tuple[ToolField, ...]
    must_call: bool
    """Whether the answer is calls and nothing else."""
    several: bool
    tagged: bool
    """Whether calls stand between tags; else they are the whole answer, in JSON."""

    def constraint(self, content: Constraint | None) -> Constraint | None:
        """What binds the answer, where it may also be what `content` says; None if it is free.

        Raises:
            InvalidRequest: the tools' schemas are too large.
        """
        if self.must_call:
            return self._lark("start: calls", "tools")
        if content is not None and content.kind is ConstraintKind.JSON_SCHEMA:
            return self._lark(f"start: calls | {_lark_json(_parsed(content))}", content.field)
        if content is not None:
            raise InvalidRequest(
                f"{content.field} binds the whole answer, which may also be a call of a tool: "
                "send it without tools, or tool_choice none",
                field=content.field,
            )
        if not any(tool.function.strict for tool in self.tools):
            return None
        if self.tagged:
            repeated = "tagged*" if self.several else "tagged?"
            calls = f"start: {repeated} TEXT\ntagged: before call_body\nbefore[lazy]: TEXT " + lark_literal(CALL_START)
            return self._lark(f"{calls}\nTEXT: /(.|\\n)*/", "tools")
        return self._lark("start: calls | TEXT\nTEXT: /[^\\[{](.|\\n)*/", "tools")

    def _lark(self, start: str, field: str) -> Constraint:
        functions = [tool.function for tool in self.tools]
        separator = '"\\n"' if self.tagged else '", "'
        repeated = f"call ({separator} call)*" if self.several else "call"
        if self.tagged:
            calls = f"calls: {repeated}\ncall: {lark_literal(CALL_START)} call_body"
        else:
            calls = f'calls: call | "[" {repeated} "]"\ncall: function'
        rules = [
            start,
            calls,
            f'call_body: "\\n" function "\\n" {lark_literal(CALL_END)}',
            "function: " + " | ".join(f"function_{index}" for index in range(len(functions))),
        ]
        keys = _ARGUMENT_KEYS[:1] if self.tagged else _ARGUMENT_KEYS
        key = "(" + " | ".join(lark_literal(f', "{name}": ') for name in keys) + ")"
        for index, function in enumerate(functions):
            opening = lark_literal('{"name": ' + json.dumps(function.name))
            schema = _lark_json(function.parameters or {"type": "object"})
            rules.append(f'function_{index}: {opening} {key} {schema} "}}"')
        return Constraint(ConstraintKind.LARK, "\n".join(rules), field)


def tool_use(body: ChatRequest, *, tagged: bool) -> ToolUse | None:
    """What a request says of tools; None if it has none, or wants none called.

    Raises:
        InvalidRequest: two tools share a name, or the choice is none of them.
    """
    choice, tools = body.tool_choice, body.tools or []
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools", field="tool_choice")
        return None
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidRequest("two tools have the same name: give each its own", field="tools")
    if choice == "none":
        return None
    if isinstance(choice, NamedToolChoice):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise InvalidRequest(
                f"tool_choice names {choice.function.name!r}, which is none of the tools: {', '.join(names[:5])}",
                field="tool_choice",
            )
    must_call = choice not in (None, "auto")
    # A choice by name is one call of it.
    several = body.parallel_tool_calls is not False and not isinstance(choice, NamedToolChoice)
    return ToolUse(tuple(tools), must_call, several, tagged)


@dataclass(frozen=True)
class Call:
    """One call in an answer."""

    name: str
    arguments: str
    """A JSON object as text."""
    id: str

    def to_json(self) -> Json:
        """As an answer carries it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallFinder:
    """Takes an answer's text as it comes, and tells calls from what is said beside them.

    What may be the beginning of a call is held back. What looks like one and is none is text.
    """

    def __init__(self, use: ToolUse) -> None:
        self._names = {tool.function.name for tool in use.tools}
        self._tagged = use.tagged
        self._several = use.several
        self._held = ""
        self._found_any = False
        self._is_text = False
        """Whether an answer without tags has begun as no JSON."""

    def add(self, text: str) -> Iterator[str | Call]:
        """Take more text; gives what is certain with it."""
        self._held += text
        yield from self._tagged_parts() if self._tagged else self._plain_parts()

    def flush(self) -> Iterator[str | Call]:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        calls: list[Call] | None = None
        if not self._tagged:
            calls = self._read(held)
        elif held.startswith(CALL_START):  # Its end is missing, as where the end token comes at once.
            calls = self._read(held.removeprefix(CALL_START))
        if calls is not None:
            yield from calls
        elif held.strip() or (held and not self._found_any):
            yield held

    def _tagged_parts(self) -> Iterator[str | Call]:
        while self._held:
            before, tag, inside = self._held.partition(CALL_START)
            if not tag:
                cut = len(before) - _num_doubtful(before)
                self._held = before[cut:]
                if cut:
                    yield before[:cut]
                return
            if before.strip():
                yield before.rstrip()
            body, end, rest = inside.partition(CALL_END)
            if not end:
                self._held = tag + inside
                return
            self._held = rest
            calls = self._read(body)
            if calls is None:
                yield tag + body + end
            else:
                yield from calls

    def _plain_parts(self) -> Iterator[str | Call]:
        begun = self._held.lstrip()
        self._is_text = self._is_text or (begun != "" and begun[0] not in "{[")
        if self._is_text:
            held, self._held = self._held, ""
            if held:
                yield held

    def _read(self, text: str) -> list[Call] | None:
        """The calls that a piece of JSON is; None if it is something else, or calls what was not offered.

        Where one call is asked for, the others are left out.
        """
        try:
            found = json.loads(text, parse_constant=_no_json)
        except (ValueError, RecursionError):
            return None
        entries = found if isinstance(found, list) and not self._tagged else [found]
        calls = [call for entry in entries if (call := self._call(entry)) is not None]
        if not calls or len(calls) < len(entries):
            return None
        if not self._several:
            calls = [] if self._found_any else calls[:1]
        self._found_any = True
        return calls

    def _call(self, entry: object) -> Call | None:
        if not isinstance(entry, dict) or entry.get("name") not in self._names:
            return None
        given: object = next((entry[key] for key in _ARGUMENT_KEYS if key in entry), {})
        if not isinstance(given, dict):
            return None
        arguments = json.dumps(given, ensure_ascii=False)
        if not arguments.isprintable() and _has_surrogates(arguments):
            arguments = json.dumps(given)  # Half a character has no other form that can be sent.
        return Call(entry["name"], arguments, uuid.uuid4().hex[:_ID_CHARACTERS])


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _parsed(schema: Constraint) -> Json:
    try:
        found = json.loads(schema.text)
    except ValueError as error:
        raise InvalidRequest(f"{schema.field} is not JSON: {error}", field=schema.field) from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{schema.field} is no JSON object", field=schema.field)
    return found


def _lark_json(schema: Json) -> str:
    """A JSON schema as a part of a Lark rule, where the library reads its options off the schema itself."""
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": JSON_SPACING}})


def _num_doubtful(text: str) -> int:
    """Length of the end of a text that may belong to a call: blanks before it, and the beginning of its tag."""
    longest = min(len(CALL_START) - 1, len(text))
    begun = next((size for size in range(longest, 0, -1) if CALL_START.startswith(text[-size:])), 0)
    rest = text[: len(text) - begun]
    return begun + len(rest) - len(rest.rstrip())

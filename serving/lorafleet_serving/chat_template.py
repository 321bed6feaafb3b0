"""From a conversation to the text that a model was trained on: the base model's chat template, or an adapter's own.

A template that knows no tools still gets them: they are described in the system's message, calls and results
are written in the form that is described there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

from lorafleet_serving.exceptions import InvalidRequest

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
"""What many models write around a call, and what is asked of those that were not taught anything."""

_MAX_STEPS = 3_000_000
"""Lines of an adapter's template, as it was compiled, that one prompt may run: a second or two."""
_NAMES_TOOLS = re.compile(r"\btools\b")
_INSTRUCTION = """\
You can call tools. To call one, write a JSON object with its name and arguments between tags, once for each call:
{start}
{{"name": "the tool's name", "arguments": {{"parameter": "value"}}}}
{end}
What a tool returns comes back to you between <tool_response> and </tool_response>.
The tools, each with the JSON schema of its arguments:
{tools}"""

ChatMessage = Mapping[str, Any]
Tool = Mapping[str, Any]
TraceFunction = Callable[[FrameType, str, Any], Any]


class ChatTemplate:
    """One template. Safe to share between threads."""

    def __init__(self, tokenizer: Any, text: str, *, is_trusted: bool) -> None:
        """
        Args:
            tokenizer: the tokenizer of transformers whose special tokens the template writes; it has a sandbox for it.
            text: the template.
            is_trusted: whether its steps need not be counted, as those of the base model need not.
        """
        self._tokenizer = tokenizer
        self._is_trusted = is_trusted
        self._text = text
        self._takes_tools = _NAMES_TOOLS.search(text) is not None

    @property
    def tags_calls(self) -> bool:
        """Whether calls of tools stand between `CALL_START` and `CALL_END`; else they are JSON and nothing else."""
        return not self._takes_tools or CALL_START in self._text

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] | None, field: str = "messages") -> str:
        """Text of a conversation, up to where the assistant's answer starts.

        Raises:
            InvalidRequest: the template refuses it, or works too long on it.
        """
        from jinja2 import TemplateError

        if not self._takes_tools:
            messages, tools = _in_words(messages, tools), None
        write = partial(
            self._tokenizer.apply_chat_template,
            [dict(message) for message in messages],
            tools=list(tools) if tools else None,
            chat_template=self._text,
            tokenize=False,
            add_generation_prompt=True,
        )
        try:
            return str(write() if self._is_trusted else _bounded(write))
        except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise InvalidRequest(f"the chat template refuses the messages: {error}", field=field) from error
        except RecursionError as error:
            raise InvalidRequest("the chat template recurses without end", field=field) from error


def _bounded(write: Callable[[], str]) -> str:
    """What `write` writes, unless it takes too many steps: counted, not timed, so that each try ends alike."""
    left = _MAX_STEPS

    def count(frame: FrameType, event: str, argument: object) -> TraceFunction:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it takes more than {_MAX_STEPS} steps")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return write()
    finally:
        sys.settrace(before)


def _in_words(messages: Sequence[ChatMessage], tools: Sequence[Tool] | None) -> list[ChatMessage]:
    """The conversation without tools of its own: they are described, calls and results become text."""
    told = [_message_in_words(message) for message in messages]
    if not tools:
        return told
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    instruction = _INSTRUCTION.format(start=CALL_START, end=CALL_END, tools=described)
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{instruction}"}, *told[1:]]
    return [{"role": "system", "content": instruction}, *told]


def _message_in_words(message: ChatMessage) -> ChatMessage:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if "tool_calls" not in message:
        return message
    calls = [f"{CALL_START}\n{_call_in_words(call['function'])}\n{CALL_END}" for call in message["tool_calls"]]
    return {"role": message["role"], "content": "\n".join([*filter(None, [message["content"]]), *calls])}


def _call_in_words(function: Mapping[str, Any]) -> str:
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)

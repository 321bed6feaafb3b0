"""From the messages of a chat request to those that a chat template is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lorafleet_serving.api.chat_schemas import (
    AssistantMessage,
    ChatMessage,
    InstructingMessage,
    ToolCall,
    ToolMessage,
)
from lorafleet_serving.exceptions import InvalidRequest

Json = dict[str, Any]


def template_messages(messages: Sequence[ChatMessage]) -> list[Json]:
    """Messages as templates expect them: text in one piece, arguments of calls as objects.

    Raises:
        InvalidRequest: the arguments of a call are no JSON object.
    """
    return [_template_message(place, message) for place, message in enumerate(messages)]


def _template_message(place: int, message: ChatMessage) -> Json:
    role = "system" if isinstance(message, InstructingMessage) else message.role
    told: Json = {"role": role, "content": message.text}
    if message.name is not None:
        told["name"] = message.name
    if isinstance(message, ToolMessage):
        told["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage):
        told["content"] = message.text or message.refusal or ""
        if message.tool_calls:
            told["tool_calls"] = [_template_call(place, call) for call in message.tool_calls]
    return told


def _template_call(place: int, call: ToolCall) -> Json:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise _wrong(place, f"arguments of a call are not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise _wrong(place, "arguments of a call are no JSON object")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _wrong(place: int, told: str) -> InvalidRequest:
    return InvalidRequest(f"messages.{place}: {told}", field="messages")

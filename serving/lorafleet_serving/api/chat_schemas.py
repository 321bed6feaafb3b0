"""Request bodies of the OpenAI dialect: conversations and tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from lorafleet_serving.api.schemas import MAX_LOGPROBS, FirstErrorOnly, RequestBody, SamplingFields, exactly_one

MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_TOOL_NAME_CHARACTERS = 64

ToolName = Annotated[str, Field(min_length=1, max_length=MAX_TOOL_NAME_CHARACTERS, pattern=r"^[A-Za-z0-9_.-]+$")]


class TextPart(RequestBody):
    """A part of a message that consists of several."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


Content = str | Annotated[list[TextPart], FirstErrorOnly]


class CalledFunction(RequestBody):
    """Which tool was called, and with what."""

    name: str
    arguments: str = Field(description="A JSON object as text")
    parsed_arguments: Any = Field(None, description="Of OpenAI's client, which sends back what it read; not used")


class ToolCall(RequestBody):
    """One call of an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class _Message(RequestBody):
    name: str | None = None

    @property
    def text(self) -> str:
        """The message's text."""
        content: Content | None = getattr(self, "content", None)
        if content is None or isinstance(content, str):
            return content or ""
        return "".join(part.text or part.refusal or "" for part in content)


class InstructingMessage(_Message):
    """A message of the application. Templates know the first of the two names alone, and are given that."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(_Message):
    """A message of the user."""

    role: Literal["user"]
    content: Content


class AssistantMessage(_Message):
    """An earlier answer. What answers carry beside text and calls may be sent back, and is not used."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], FirstErrorOnly] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None


class ToolMessage(_Message):
    """What a called tool has returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[InstructingMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionField(RequestBody):
    """A tool that can be called."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments; any object unless set")
    strict: bool | None = Field(None, description="Whether the arguments of every call must fit the schema")


class ToolField(RequestBody):
    """One entry of `tools`."""

    type: Literal["function"]
    function: FunctionField


class NamedFunction(RequestBody):
    """A tool by its name."""

    name: str


class NamedToolChoice(RequestBody):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(SamplingFields):
    """Body of `/v1/chat/completions`: `messages` or `variables`."""

    model_config = ConfigDict(json_schema_extra=exactly_one("messages", "variables"))

    messages: Annotated[list[ChatMessage], FirstErrorOnly, Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    max_tokens: int | None = Field(None, ge=1, description="All the room there is unless set")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of the same, which wins")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Alternatives beside each token; needs `logprobs`"
    )
    tools: Annotated[list[ToolField], FirstErrorOnly, Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = Field(
        None, description="`auto` with tools unless set; the others bind the answer to calls of the tools"
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether there may be several calls: true unless set")
    modalities: Annotated[list[Literal["text"]], FirstErrorOnly] | None = None
    # Fields that clients send at their neutral value; any other value is refused rather than ignored.
    functions: None = None
    function_call: Literal["none"] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None

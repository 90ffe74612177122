"""The fields of a request for a chat completion (OpenAI's /v1/chat/completions)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from ..harmony.messages import Effort
from .fields import (
    AuthorName,
    CalledName,
    CheckedStops,
    CompletionStreamOptions,
    Content,
    Fields,
    FormatName,
    FunctionName,
    IgnoredFields,
    Listed,
    PenaltyFields,
    Schema,
    chosen,
)


class FunctionCall(Fields):
    """A call that the model made before. `arguments` is JSON as text; OpenAI's clients add it parsed."""

    name: CalledName
    arguments: str
    parsed_arguments: Any = None


class ToolCall(Fields):
    """A call with its id. `index` is what streams add."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class SystemMessage(Fields):
    """Instructions, whatever they are called."""

    role: Literal["system", "developer"]
    content: Content
    name: AuthorName | None = None


class UserMessage(Fields):
    """What a user says."""

    role: Literal["user"]
    content: Content
    name: AuthorName | None = None


class AssistantMessage(Fields):
    """What the model said before. Reasoning is of use where its calls are answered now. The other fields change
    nothing: clients that send an answer back as they got it send them."""

    role: Literal["assistant"]
    content: Content | None = None
    name: AuthorName | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Listed[ToolCall] | None = None
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None
    parsed: Any = None


class ToolMessage(Fields):
    """The result of a call."""

    role: Literal["tool"]
    tool_call_id: str
    content: Content


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    chosen("role", "expected a message of the role system, developer, user, assistant or tool"),
]


class Function(Fields):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class FunctionTool(Fields):
    """A tool: functions are the only kind."""

    type: Literal["function"]
    function: Function


class FunctionByName(Fields):
    """The name of a function."""

    name: FunctionName


class NamedFunction(Fields):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionByName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<str>")] | Annotated[NamedFunction, Tag("<function>")],
    chosen("tool_choice", 'expected "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'),
]


class NamedSchema(Fields):
    """A JSON schema that the answer follows."""

    name: FormatName
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Fields):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Fields):
    """A JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Fields):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[ObjectFormat, Tag("<json_object>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")],
    chosen("response_format", "expected an object of the type text, json_object or json_schema"),
]


class ChatRequest(IgnoredFields, PenaltyFields):
    """A request. `max_tokens` is the old name of `max_completion_tokens`. An answer has one call at most, so that
    `parallel_tool_calls` changes nothing."""

    advice: ClassVar[dict[str, str]] = {
        "functions": "use tools",
        "function_call": "use tool_choice",
        "store": "nothing is stored here",
        "verbosity": "say in a message how long the answer should be",
        "modalities": "this model writes text alone",
    }

    model: str
    messages: Annotated[Listed[Message], Field(min_length=1)]
    tools: Listed[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    verbosity: Literal["medium"] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: CheckedStops = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: CompletionStreamOptions | None = None
    modalities: Listed[Literal["text"]] | None = None

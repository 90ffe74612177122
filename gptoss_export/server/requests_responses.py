"""The fields of a request for a response (OpenAI's /v1/responses)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from ..harmony.messages import Effort
from .fields import (
    TEXT_ALONE,
    CalledName,
    Fields,
    FormatName,
    FunctionName,
    IgnoredFields,
    Listed,
    SamplingFields,
    Schema,
    StreamOptions,
    chosen,
)
from .requests_chat import ObjectFormat, TextFormat

Status = Literal["in_progress", "completed", "incomplete"]
Phase = Literal["commentary", "final_answer"]


class InputText(Fields):
    """A part of a message to the model."""

    type: Literal["input_text", "text"]
    text: str


class OutputText(Fields):
    """A part of a message of the model, as it was returned."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = Field(default=None, max_length=0)
    logprobs: list[Any] | None = None


InputPart = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[InputText, Tag("<text>")]
    | Annotated[OutputText, Tag("<output_text>")],
    chosen("part", f"expected a part of type input_text or output_text; {TEXT_ALONE}"),
]
InputContent = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[Listed[InputPart], Tag("<list>")],
    chosen("content", "expected a text, or a list of parts"),
]


class InputMessage(Fields):
    """A message of anybody. `phase` says whether the model wrote it before a call, or as its answer."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent
    id: str | None = None
    status: Status | None = None
    phase: Phase | None = None


class FunctionCallItem(Fields):
    """A call that the model made before."""

    type: Literal["function_call"]
    call_id: str
    name: CalledName
    arguments: str
    id: str | None = None
    status: Status | None = None


class FunctionOutputItem(Fields):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: InputContent
    id: str | None = None
    status: Status | None = None


class ReasoningText(Fields):
    """Reasoning as the model wrote it."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Fields):
    """Reasoning before a call. Without `content` there is nothing to go on with, and the item is left out."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Listed[ReasoningText] | None = None
    content: Listed[ReasoningText] | None = None
    encrypted_content: None = None
    status: Status | None = None


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[InputMessage, Tag("<user>")]
    | Annotated[InputMessage, Tag("<assistant>")]
    | Annotated[InputMessage, Tag("<system>")]
    | Annotated[InputMessage, Tag("<developer>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    chosen("item", "expected an item of the type message, function_call, function_call_output or reasoning"),
]
Input = Annotated[
    Annotated[str, Tag("<str>")] | Annotated[Listed[Item], Tag("<list>"), Field(min_length=1)],
    chosen("input", "expected a text, or a list of items"),
]


class ResponseTool(Fields):
    """A tool: functions are the only kind."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class NamedTool(Fields):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<str>")] | Annotated[NamedTool, Tag("<function>")],
    chosen("tool_choice", 'expected "none", "auto", "required" or {"type": "function", "name": ...}'),
]


class SchemaTextFormat(Fields):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    name: FormatName
    description: str | None = None
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


TextConfigFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[ObjectFormat, Tag("<json_object>")]
    | Annotated[SchemaTextFormat, Tag("<json_schema>")],
    chosen("format", "expected an object of the type text, json_object or json_schema"),
]


class TextConfig(Fields):
    """How the answer's text looks."""

    format: TextConfigFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Fields):
    """How long the model reasons. Its reasoning is returned as it is, so that no summary is made."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class ResponseRequest(IgnoredFields, SamplingFields):
    """A request. Nothing is stored: a conversation goes on with all of its items in `input`."""

    advice: ClassVar[dict[str, str]] = {
        "store": "responses are not stored here; leave it out",
        "previous_response_id": "responses are not stored here; send the items of the conversation in input",
        "conversation": "conversations are not stored here; send the items of the conversation in input",
        "background": "leave it out",
        "truncation": "shorten the input yourself",
        "tools": "functions are the only tools here",
        "text.verbosity": "say in instructions how long the answer should be",
        "include": "nothing else can be included",
    }

    model: str
    input: Input
    instructions: str | None = None
    tools: Listed[ResponseTool] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Listed[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: None = None
    conversation: None = None

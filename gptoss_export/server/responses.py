"""/v1/responses. Nothing is stored: the server is the same before and after a response, so that any of several servers
can answer the next request of a conversation, which brings all of its items."""

from __future__ import annotations

import time
import uuid

from ..harmony.messages import Conversation, FunctionTool
from ..structure.formats import CallableTool, Format, JsonObject, JsonSchema
from .fields import check_stream_options
from .generating import Order
from .ordering import Sampling, Wanted, chosen_function, format_param, orders
from .readers import ConversationReader
from .requests_chat import ObjectFormat
from .requests_responses import ResponseRequest, SchemaTextFormat
from .response_items import read_items
from .response_object import ResponseFacts
from .response_sinks import ResponseEvents, WholeResponse
from .served_model import ServedModel
from .serving import Job, Serving
from .settings import ServerSettings
from .sse import Reply
from .turns import format_section, joined
from .validation import parse


def respond(serving: Serving, body: bytes, reply: Reply) -> Job:
    """What a request for a response asks for. Raises as `read_request`."""
    model = serving.model
    asked, given = read_request(model, serving.settings, body)
    top, final = _top_logprobs(asked), _format(asked)
    facts = ResponseFacts(model, asked, f"resp_{uuid.uuid4().hex}", int(time.time()))
    readers = [ConversationReader(model.tokenizer, (), top is not None, one_value=final is not None)]
    sink = ResponseEvents(facts, top, reply) if asked.stream else WholeResponse(facts, top, reply)
    return Job(given, readers, sink, format_param("text.format", final, _callable(asked)))


def read_request(model: ServedModel, settings: ServerSettings, body: bytes) -> tuple[ResponseRequest, list[Order]]:
    """The request that a body holds, and the order of its answer.

    Raises ApiError, and UsageError for what the chat format or structured output cannot say.
    """
    asked = parse(ResponseRequest, body)
    adapter = model.adapter_of(asked.model)
    check_stream_options(asked.stream, asked.stream_options)
    given = asked.tool_choice or "auto"
    choice: str = given if isinstance(given, str) else chosen_function(given.name)
    instructions, messages = read_items(asked.input)
    format_ = asked.text.format if asked.text is not None else None
    section = ""
    if isinstance(format_, SchemaTextFormat):
        section = format_section(format_.name, format_.description, format_.schema_)
    tools = asked.tools or []
    conversation = Conversation(
        messages,
        effort=(asked.reasoning and asked.reasoning.effort) or "medium",
        instructions=joined([asked.instructions or "", instructions, section]),
        tools=tuple(
            FunctionTool(tool.name, tool.description or "", tool.parameters) for tool in tools if choice != "none"
        ),
        date=model.today().isoformat(),
    )
    wanted = Wanted(
        conversation,
        Sampling(asked, None, _top_logprobs(asked)),
        model.new_tokens(asked.max_output_tokens, settings.max_new_tokens, "max_output_tokens"),
        "input",
        _format(asked),
        _callable(asked),
        choice,
        adapter=adapter,
    )
    return asked, orders(model, wanted)


def _callable(asked: ResponseRequest) -> tuple[CallableTool, ...]:
    return tuple(CallableTool(tool.name, tool.parameters, bool(tool.strict)) for tool in asked.tools or ())


def _format(asked: ResponseRequest) -> Format | None:
    found = asked.text.format if asked.text is not None else None
    if isinstance(found, SchemaTextFormat):
        return JsonSchema(found.schema_, bool(found.strict), "text.format.schema")
    return JsonObject() if isinstance(found, ObjectFormat) else None


def _top_logprobs(asked: ResponseRequest) -> int | None:
    wanted = "message.output_text.logprobs" in (asked.include or ())
    return asked.top_logprobs or 0 if wanted or asked.top_logprobs else None

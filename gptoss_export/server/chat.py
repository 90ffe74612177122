"""/v1/chat/completions."""

from __future__ import annotations

import time
import uuid

from ..harmony.messages import Conversation, FunctionTool
from ..structure.formats import CallableTool, Format, JsonObject, JsonSchema
from .chat_messages import read_messages
from .chat_sinks import ChatChunks, WholeChat
from .completion_facts import CompletionFacts
from .errors import invalid
from .fields import check_stream_options, listed_stops
from .generating import Order
from .ordering import Sampling, Wanted, check_answer_count, chosen_function, format_param, orders
from .readers import ConversationReader
from .requests_chat import ChatRequest, ObjectFormat, SchemaFormat
from .served_model import ServedModel
from .serving import Job, Serving
from .settings import ServerSettings
from .sse import Reply
from .turns import format_section, joined
from .validation import parse


def chat(serving: Serving, body: bytes, reply: Reply) -> Job:
    """What a request for a chat completion asks for. Raises as `read_request`."""
    model = serving.model
    asked, given = read_request(model, serving.settings, body)
    top, final = _top_logprobs(asked), _format(asked)
    facts = CompletionFacts(model, asked.model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), top)
    stops, one_value = listed_stops(asked.stop), final is not None
    readers = [ConversationReader(model.tokenizer, stops, top is not None, one_value) for _ in given]
    sink: ChatChunks | WholeChat
    if asked.stream:
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        sink = ChatChunks(facts, len(given), reply, with_usage)
    else:
        sink = WholeChat(facts, len(given), reply)
    return Job(given, readers, sink, format_param("response_format", final, _callable(asked)))


def read_request(model: ServedModel, settings: ServerSettings, body: bytes) -> tuple[ChatRequest, list[Order]]:
    """The request that a body holds, and an order for each answer.

    Raises ApiError, and UsageError for what the chat format or structured output cannot say.
    """
    asked = parse(ChatRequest, body)
    adapter = model.adapter_of(asked.model)
    check_stream_options(asked.stream, asked.stream_options)
    check_answer_count(asked.n or 1, settings.max_requests, "n")
    given = asked.tool_choice or "auto"
    choice: str = given if isinstance(given, str) else chosen_function(given.function.name)
    instructions, messages = read_messages(asked.messages)
    format_ = asked.response_format
    if isinstance(format_, SchemaFormat):
        schema = format_.json_schema
        instructions = joined([instructions, format_section(schema.name, schema.description, schema.schema_)])
    functions = [tool.function for tool in asked.tools or ()]
    conversation = Conversation(
        messages,
        effort=asked.reasoning_effort or "medium",
        instructions=instructions,
        tools=tuple(
            FunctionTool(function.name, function.description or "", function.parameters)
            for function in functions
            if choice != "none"
        ),
        date=model.today().isoformat(),
    )
    most, param = asked.max_completion_tokens, "max_completion_tokens"
    if most is None:
        most, param = asked.max_tokens, "max_tokens"
    elif asked.max_tokens not in (None, most):
        raise invalid(
            "max_tokens", f"found {asked.max_tokens} and {param} {most}, expected one number; give one of them"
        )
    wanted = Wanted(
        conversation,
        Sampling(asked, asked.seed, _top_logprobs(asked)),
        model.new_tokens(most, settings.max_new_tokens, param),
        "messages",
        _format(asked),
        _callable(asked),
        choice,
        asked.n or 1,
        adapter,
    )
    return asked, orders(model, wanted)


def _callable(asked: ChatRequest) -> tuple[CallableTool, ...]:
    functions = [tool.function for tool in asked.tools or ()]
    return tuple(CallableTool(function.name, function.parameters, bool(function.strict)) for function in functions)


def _format(asked: ChatRequest) -> Format | None:
    if isinstance(asked.response_format, SchemaFormat):
        schema = asked.response_format.json_schema
        return JsonSchema(schema.schema_, bool(schema.strict), "response_format.json_schema.schema")
    return JsonObject() if isinstance(asked.response_format, ObjectFormat) else None


def _top_logprobs(asked: ChatRequest) -> int | None:
    if asked.logprobs:
        return asked.top_logprobs or 0
    if asked.top_logprobs:
        raise invalid("top_logprobs", "found without logprobs; set logprobs, or leave it out")
    return None
